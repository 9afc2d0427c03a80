"use strict";
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const items = [...document.querySelectorAll(".flip")].map((node) => ({
    node, text: node.textContent.toLowerCase(), slice: node.dataset.slice, change: node.dataset.change,
  }));
  const more = document.getElementById("more");
  const count = document.getElementById("count");
  const step = 20;
  let limit = step;
  const show = (all) => {
    const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const slice = form.elements.slice ? form.elements.slice.value : "";
    const change = form.elements.change ? form.elements.change.value : "";
    let fit = 0;
    for (const item of items) {
      const fits = (!slice || item.slice === slice) && (!change || item.change === change)
        && words.every((word) => item.text.includes(word));
      fit += fits;
      item.node.hidden = !(fits && (all || fit <= limit));
    }
    more.hidden = all || fit <= limit;
    count.value = `${Math.min(fit, all ? fit : limit)} of ${fit} shown` + (fit < items.length ? ` (${items.length} in all)` : "");
  };
  const restart = () => { limit = step; show(false); };
  form.hidden = false;
  form.addEventListener("input", restart);
  form.addEventListener("reset", () => setTimeout(restart));
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    const next = items.filter((item) => !item.node.hidden).pop();
    limit += step;
    show(false);
    let node = next && next.node.nextElementSibling;
    while (node && node.hidden) node = node.nextElementSibling;
    if (node) node.focus({ preventScroll: true });
  });
  window.addEventListener("beforeprint", () => show(true));
  window.addEventListener("afterprint", () => show(false));
  show(false);
})();
