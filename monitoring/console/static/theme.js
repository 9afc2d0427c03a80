"use strict";
// Sets light or dark before anything is drawn, so that a page never flashes in the other one.
(() => {
  let theme = "auto";
  try { theme = localStorage.getItem("modelyard.theme") || "auto"; } catch { /* storage is refused: the system's choice stays */ }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
