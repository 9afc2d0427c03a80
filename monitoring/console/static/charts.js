/* Draws what `data-chart` says (monitoring/console/charts.py) with uPlot, and again when it changes.

   Owns: drawing. Never: figures, colours and fonts (the style sheet's custom properties), the table beside a chart. */
"use strict";

(() => {
  const drawn = new WeakMap();
  const DASHES = [[], [], [9, 4], [2, 3], [12, 3, 2, 3], [5, 2], [1, 5]];
  const UTC = "Etc/UTC";

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const compact = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
    if (size < 1e-4) return value.toExponential(1);
    return String(+value.toPrecision(3));
  };

  const seconds = (value) => {
    if (value === 0) return "0";
    if (value >= 3600) return `${+(value / 3600).toPrecision(3)} h`;
    if (value >= 120) return `${+(value / 60).toPrecision(3)} min`;
    if (value >= 1) return `${+value.toPrecision(3)} s`;
    if (value >= 1e-3) return `${+(value * 1e3).toPrecision(3)} ms`;
    return `${+(value * 1e6).toPrecision(3)} µs`;
  };

  const figure = (value, unit, currency) => {
    if (value === null || value === undefined) return "–";
    if (unit === "share") return `${+(100 * value).toPrecision(4)}%`;
    if (unit === "seconds") return seconds(value);
    if (unit === "money") return `${compact(value)} ${currency}`;
    return compact(value);
  };

  const paths = (shape) => {
    if (shape === "step") return uPlot.paths.stepped({ align: 1 });
    if (shape === "bars") return uPlot.paths.bars({ size: [0.85, 48], align: 1 });
    return uPlot.paths.linear();
  };

  /* In the order in which they are drawn: the highest layer of stacked bars first, those below cover it. */
  const order = (said) => {
    const numbers = said.names.map((_, index) => index);
    return said.stacked ? numbers.reverse() : numbers;
  };

  /* Values that no line reaches, as nothing is known on either side: they are drawn as points. */
  const alone = (own) => own.flatMap((value, at) => (value !== null && own[at - 1] == null && own[at + 1] == null ? [at] : []));

  const series = (said, index) => {
    const colour = style(`--chart-${said.colours[index]}`);
    const solid = said.shape === "bars";
    return {
      label: said.names[index],
      stroke: solid ? undefined : colour,
      fill: solid ? colour : undefined,
      width: solid ? 0 : 2,
      dash: solid ? undefined : said.dashed[index] ? [4, 4] : DASHES[said.colours[index]] || [],
      paths: paths(said.shape),
      points: {
        show: said.shape === "line" && said.data[0].length < 40,
        filter: said.shape === "line" ? (plot, at, shown) => (shown ? null : alone(plot.data[at])) : undefined,
        size: 5,
        stroke: colour,
        fill: colour,
      },
    };
  };

  /* Of a logarithmic axis: 1, 2 and 5 of every power of ten. */
  const readable = (plot, splits) => splits.map((at) => ([1, 2, 5].includes(Math.round(at / 10 ** Math.floor(Math.log10(at) + 1e-9))) ? at : null));

  const step = (places) => places.reduce((least, at, i) => (i ? Math.min(least, at - places[i - 1]) : least), 3600);

  const scaleX = (said) => {
    const places = said.data[0];
    if (said.over === "seconds") return { time: false, distr: 3, log: 10 };
    if (said.shape !== "bars") return { time: true };
    return { time: true, range: () => [places[0], places[places.length - 1] + step(places)] };
  };

  const markers = (said) => (plot) => {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = style("--chart-0");
    ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
    for (const [at] of said.marks) {
      const x = Math.round(plot.valToPos(at, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  };

  /* The legend under the chart says what is under the pointer. */
  const reading = (box, said) => (plot) => {
    const legend = box.parentElement.querySelectorAll("[data-series]");
    const at = plot.cursor.idx;
    legend.forEach((item) => {
      const index = Number(item.dataset.series);
      const own = said.data[index + 1];
      let value = at === null || at === undefined ? undefined : own[at];
      if (said.stacked && index > 0 && value !== undefined && value !== null) value -= said.data[index][at] || 0;
      item.textContent = value === undefined ? "" : figure(value, said.unit, said.currency);
    });
  };

  const options = (box, said) => {
    const font = `12px ${style("--chart-font") || "system-ui, sans-serif"}`;
    const axis = { stroke: style("--chart-text"), font, grid: { stroke: style("--chart-grid"), width: 1 } };
    const quiet = { ...axis, ticks: { stroke: style("--chart-grid"), width: 1 } };
    const value = (number) => (number === null ? "" : figure(number, said.unit, said.currency));
    const wide = said.unit === "money" ? 84 : 58;
    return {
      width: Math.max(120, box.clientWidth),
      height: Number(box.dataset.height || 220),
      tzDate: (at) => uPlot.tzDate(new Date(at * 1e3), UTC),
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
      scales: {
        x: scaleX(said),
        y: { range: (plot, low, high) => [0, said.top ?? (high > 0 ? high * 1.08 : 1)] },
      },
      axes: [
        said.over === "seconds"
          ? { ...quiet, size: 34, filter: readable, values: (plot, splits) => splits.map((at) => (at === null ? "" : seconds(at))) }
          : { ...quiet, space: 72, values: TIMES },
        { ...quiet, size: wide, values: (plot, splits) => splits.map(value) },
      ],
      series: [{}, ...order(said).map((index) => series(said, index))],
      hooks: { draw: [markers(said)], setCursor: [reading(box, said)] },
    };
  };

  /* Days and hours as the rest of the console writes them. */
  const TIMES = [
    [86400, "{MM}-{DD}", "\n{YYYY}", null, null, null, null, null, 1],
    [3600, "{HH}:{mm}", "\n{MM}-{DD}", null, "\n{MM}-{DD}", null, null, null, 1],
    [60, "{HH}:{mm}", "\n{MM}-{DD}", null, "\n{MM}-{DD}", null, null, null, 1],
    [1, "{HH}:{mm}:{ss}", "\n{MM}-{DD}", null, "\n{MM}-{DD}", null, null, null, 1],
  ];

  const draw = (box, anew) => {
    const text = box.dataset.chart;
    const there = drawn.get(box);
    if (there && !anew && there.text === text && box.contains(there.plot.root)) return;
    const said = JSON.parse(text);
    if (there) there.plot.destroy();
    box.replaceChildren();
    const data = [said.data[0], ...order(said).map((index) => said.data[index + 1])];
    drawn.set(box, { text, plot: new uPlot(options(box, said), data, box) });
    sizes.observe(box);
  };

  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const there = drawn.get(target);
      const width = Math.max(120, target.clientWidth);
      if (there && there.plot.width !== width) there.plot.setSize({ width, height: there.plot.height });
    }
  });

  const all = (anew) => document.querySelectorAll("[data-chart]").forEach((box) => draw(box, anew));

  document.addEventListener("DOMContentLoaded", () => all(false));
  document.addEventListener("htmx:afterSettle", () => all(false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => all(true));
  new MutationObserver(() => all(true)).observe(document.documentElement, { attributeFilter: ["data-theme"] });

  /* A page that is drawn anew keeps the pictures in it, and the tables that somebody opened. */
  if (window.Idiomorph) {
    const callbacks = Idiomorph.defaults.callbacks;
    const inChart = (node) => Boolean(node.parentElement && node.parentElement.closest("[data-chart]"));
    callbacks.beforeNodeRemoved = (node) => !inChart(node);
    callbacks.beforeAttributeUpdated = (name, node) => !(name === "open" && node.nodeName === "DETAILS");
  }
})();
