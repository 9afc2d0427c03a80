"use strict";
// What pages need beyond htmx: the beat of live pages, the dialog, forms, logs, the two switches. Charts: charts.js.
(() => {
  const BEAT_MS = 2000;
  const store = {
    get(name, otherwise) { try { return localStorage.getItem("modelyard." + name) ?? otherwise; } catch { return otherwise; } },
    set(name, value) { try { localStorage.setItem("modelyard." + name, value); } catch { /* it holds for this page only */ } },
  };
  const root = document.documentElement;
  const one = (selector) => document.querySelector(selector);

  // --- live: a beat for every live part, while the page is in view and nobody holds it still ---

  let isLive = store.get("live", "on") === "on";
  const liveSwitch = one("#live-switch");

  function showLive() {
    if (!liveSwitch) return;
    liveSwitch.hidden = !one("[data-live]");
    liveSwitch.setAttribute("aria-pressed", String(isLive));
    liveSwitch.querySelector(".word").textContent = isLive ? "Live" : "Held";
  }

  function beat() {
    if (!isLive || document.hidden) return;
    for (const part of document.querySelectorAll("[data-live]")) {
      if (!isBeingRead(part)) htmx.trigger(part, "tick");
    }
  }

  // Text that somebody selects, or a list that is open, would be drawn away under their hands.
  function isBeingRead(part) {
    const selection = getSelection();
    if (selection && !selection.isCollapsed && part.contains(selection.anchorNode)) return true;
    return document.activeElement?.tagName === "SELECT" && part.contains(document.activeElement);
  }

  liveSwitch?.addEventListener("click", () => {
    isLive = !isLive;
    store.set("live", isLive ? "on" : "off");
    showLive();
    beat();
  });
  document.addEventListener("visibilitychange", beat);
  setInterval(beat, BEAT_MS);

  // --- what is away ---

  function away(message) {
    const box = one("#away");
    if (!box) return;
    box.hidden = !message;
    box.textContent = message;
  }
  document.addEventListener("htmx:sendError", () => {
    const at = new Date().toISOString().slice(11, 19);
    if (one("#away")?.hidden) away(`The control plane does not answer since ${at} UTC. What stands here is what was known then; trying again.`);
  });
  document.addEventListener("htmx:afterRequest", (event) => { if (event.detail.xhr?.status) away(""); });

  // --- morphing keeps what somebody types into; charts.js keeps its pictures ---

  // Read anew at every morph: of a link or button that has the focus, the words must change as everything does.
  const isTyping = () => Boolean(document.activeElement?.matches("input, textarea"));
  if (window.Idiomorph) Object.defineProperty(Idiomorph.defaults, "ignoreActiveValue", { get: isTyping, enumerable: true });

  // --- the dialog ---

  const dialog = one("#dialog");
  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target.id === "dialog-body") {
      dialog.setAttribute("aria-labelledby", "dialog-title");
      dialog.removeAttribute("aria-label");
      if (!dialog.open) dialog.showModal();
      one("#dialog-body [autofocus]")?.focus();
    }
  });
  document.addEventListener("htmx:afterSettle", () => { followLogs(); sums(); });
  document.addEventListener("click", (event) => {
    if (dialog.open && event.target.closest("[data-close]")) { event.preventDefault(); dialog.close(); }
  });
  dialog?.addEventListener("close", () => { one("#dialog-body").replaceChildren(); beat(); });
  // A link that opens the dialog calls itself a button: it answers to the space bar as one does.
  document.addEventListener("keydown", (event) => {
    if (event.key === " " && event.target.matches?.("a[role=button]")) { event.preventDefault(); event.target.click(); }
  });

  // --- forms: weights that must sum to a whole, filters that send themselves ---

  function sums() {
    for (const form of document.querySelectorAll("form[data-sum]")) {
      const fields = [...form.querySelectorAll("input[data-share]")];
      const total = fields.reduce((sum, field) => sum + (Number(field.value) || 0), 0);
      const output = form.querySelector("output");
      const whole = Number(form.dataset.sum);
      const isWhole = Math.abs(total - whole) < 1e-9;
      if (output) output.textContent = isWhole ? `Together ${whole}%.` : `Together ${Number(total.toFixed(2))}%; they must make ${whole}%.`;
      output?.classList.toggle("bad", !isWhole);
    }
  }
  document.addEventListener("input", (event) => { if (event.target.closest("form[data-sum]")) sums(); });
  document.addEventListener("change", (event) => {
    const form = event.target.closest("form[data-auto]");
    if (form) form.requestSubmit();
  });

  // --- logs: stay at the end while one looks at the end ---

  const atEnd = new WeakMap();
  document.addEventListener("scroll", (event) => {
    const box = event.target;
    if (box.dataset?.follow !== undefined) atEnd.set(box, box.scrollTop + box.clientHeight >= box.scrollHeight - 24);
  }, true);
  function followLogs() {
    for (const box of document.querySelectorAll("[data-follow]")) {
      if (atEnd.get(box) ?? true) box.scrollTop = box.scrollHeight;
    }
  }

  // --- colours ---

  const themes = one("#theme");
  if (themes) {
    themes.closest("label").hidden = false;
    themes.value = store.get("theme", "auto");
    themes.addEventListener("change", () => {
      store.set("theme", themes.value);
      if (themes.value === "auto") delete root.dataset.theme; else root.dataset.theme = themes.value;
    });
  }
  showLive();
  followLogs();
  sums();
  one("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
})();
