// Controls and figures of the explorer. All coefficients, errors and bounds are polarlib's: this
// script evaluates the polynomials, finds the extrema on the screen, and draws.
"use strict";
(() => {
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("designs").textContent);
const items = JSON.parse(byId("plots").textContent);
const START = { l: 1e-3, degree: 5, steps: 5, format: "bfloat16" };
const POINTS = 1500;
// More extrema than these would cover the curve.
const MARKED = 300;
// Errors below this are rounding errors of the browser's double precision.
const RESOLVED = 1e-13;
// Okabe-Ito; on a dark ground the lighter ones.
const COLOURS = {
  light: { ground: "#ffffff", text: "#1f2328", line: "#d5d9de", first: "#0072b2",
    second: "#d55e00", third: "#009e73", fourth: "#a6498a", band: "#9aa3ad" },
  dark: { ground: "#14171a", text: "#e4e7eb", line: "#3a424a", first: "#56b4e9",
    second: "#e69f00", third: "#2fc79b", fourth: "#e39cc8", band: "#6b7681" },
};
const DEGREE_COLOURS = { 3: "second", 5: "first", 7: "third", 9: "fourth" };
const models = {};
let state = { ...START };

// -- polynomials ------------------------------------------------------------------------------

const evaluate = (step, x) => {
  const square = x * x;
  let value = 0;
  for (let i = step.length - 1; i >= 0; i--) value = value * square + step[i];
  return value * x;
};
const compose = (steps, x) => steps.reduce((value, step) => evaluate(step, value), x);
const spaced = (from, to, count, log) => Array.from({ length: count }, (_, i) => {
  const t = i / (count - 1);
  if (i === count - 1) return to;
  return log ? from * (to / from) ** t : from + (to - from) * t;
});

// The positive zeros of a step's derivative up to an end.
function turningPoints(step, end) {
  const derivative = (x) => {
    let value = 0;
    for (let i = step.length - 1; i >= 0; i--) value = value * x * x + (2 * i + 1) * step[i];
    return value;
  };
  const xs = spaced(0, end, 400);
  return xs.slice(1).flatMap((x, i) =>
    (derivative(xs[i]) * derivative(x) < 0 ? [bisect(derivative, xs[i], x)] : []));
}

function bisect(f, from, to) {
  let [a, b] = [from, to];
  const rising = f(a) < f(b);
  for (let k = 0; k < 60; k++) {
    const middle = (a + b) / 2;
    if (f(middle) < 0 === rising) a = middle; else b = middle;
  }
  return (a + b) / 2;
}

// The ends of [l, 1] and all local extrema of a composition between them: where the steps before
// some step map to one of its turning points. Between these points the composition is monotone.
function extrema(steps, lower) {
  let points = [lower, 1];
  steps.forEach((step, j) => {
    const before = (x) => compose(steps.slice(0, j), x);
    const values = points.map(before);
    const turns = turningPoints(step, 1.01 * Math.max(...values));
    points = points.flatMap((x, i) => {
      if (i + 1 === points.length) return [x];
      const [low, high] = [values[i], values[i + 1]].sort((v, w) => v - w);
      const inner = turns.filter((t) => low < t && t < high)
        .map((t) => bisect((y) => before(y) - t, x, points[i + 1]));
      return [x, ...inner.sort((v, w) => v - w)];
    });
  });
  return points;
}

// Points that show a function which is monotone between the given ones.
function refined(points) {
  if (points.length > POINTS) return spaced(points[0], points.at(-1), 2 * POINTS, true);
  const each = Math.max(3, Math.ceil(POINTS / points.length));
  return points.flatMap((x, i) =>
    (i + 1 === points.length ? [x] : spaced(x, points[i + 1], each + 1, true).slice(0, -1)));
}

// -- state ------------------------------------------------------------------------------------

const lowerEnds = () => data.lower.slice(0, data.designs[state.format][state.degree].length);
const chain = () => data.designs[state.format][state.degree][lowerEnds().indexOf(state.l)];
const nearest = (values, wanted) => values.reduce((best, v) =>
  (Math.abs(Math.log(v / wanted)) < Math.abs(Math.log(best / wanted)) ? v : best));

// Replace what a format or degree does not have by what is nearest, and return a sentence on it.
function settle() {
  const wanted = { ...state };
  if (!(state.format in data.designs)) state.format = START.format;
  if (!(state.degree in data.products)) state.degree = START.degree;
  if (!(state.l > 0)) state.l = START.l;
  state.l = nearest(lowerEnds(), state.l);
  const most = chain().last.length;
  state.steps = Math.min(Math.max(Math.round(state.steps) || START.steps, 1), most);
  const notes = [];
  if (state.l > wanted.l) {
    notes.push(`The smallest l for ${state.format} is ${state.l}: smaller singular values are `
      + "below its rounding errors.");
  }
  if (state.steps < wanted.steps) {
    notes.push(`The number of steps is at most ${most} here: more products are not offered, or `
      + `change nothing in ${state.format}.`);
  }
  return notes.join(" ");
}

function readFragment() {
  const given = new URLSearchParams(location.hash.slice(1));
  state = { ...START };
  for (const key of ["l", "degree", "steps"]) {
    if (given.has(key)) state[key] = Number(given.get(key));
  }
  if (given.has("format")) state.format = given.get("format");
}

// -- texts ------------------------------------------------------------------------------------

const digits = (value, count = 4) => {
  if (value === null) return "none: a singular value can reach 0";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(count - 1);
  return String(Number(value.toPrecision(count)));
};
const interval = (low, high) => `[${digits(low)}, ${digits(high)}]`;
const python = (value) => {
  const text = String(value);
  return /[.e]/.test(text) ? text : `${text}.0`;
};

function code(steps) {
  const rows = steps.map((step) => `    (${step.map(python).join(", ")}),`);
  const name = `degree ${state.degree}, ${state.steps} steps, for ${state.format}`;
  return [
    "import polarlib", "", `# ${name}, on [${state.l}, 1]: p(x) = a x + b x^3 + c x^5 + ...`,
    "steps = [", ...rows, "]",
    `schedule = polarlib.Schedule(steps=steps, lower=${python(state.l)}, upper=1.0)`, "",
  ].join("\n");
}

function showTexts(found, steps, points) {
  const k = state.steps - 1;
  const products = data.products[state.degree] * state.steps;
  const slope = steps.reduce((value, step) => value * step[0], 1);
  const [low, high] = found.after[k];
  byId("products").textContent = products;
  byId("error").textContent = digits(found.error[k]);
  byId("bound").textContent = digits(found.bound[k]);
  byId("slope").textContent = digits(slope);
  byId("image").textContent = found.error[k] < RESOLVED ? `1 ± ${digits(found.error[k], 2)}`
    : interval(low, high);
  byId("extrema").textContent = points ? points.length : "below double precision";
  byId("summary").textContent = `${products} products, worst error ${digits(found.error[k], 3)}, `
    + `with rounding to ${state.format} ${found.bound[k] === null ? "not bounded"
      : `at most ${digits(found.bound[k], 3)}`}.`;
  byId("lower-value").textContent = String(state.l);
  byId("steps-value").textContent = `${state.steps} of ${found.last.length}`;
  byId("lower").setAttribute("aria-valuetext", String(state.l));
  byId("steps").setAttribute("aria-valuetext", `${state.steps} steps`);
  byId("code").textContent = code(steps);
  const rows = steps.map((step, j) => {
    const before = j ? found.between[j - 1] : [state.l, 1, state.l, 1];
    const after = j === k ? found.after[k] : found.between[j];
    const error = j === k ? found.error[k] : Math.max(1 - after[0], after[1] - 1);
    const cells = [String(j + 1), interval(before[0], before[1]), interval(after[0], after[1]),
      interval(after[2], after[3]), digits(error, 3), step.join(", ")];
    const row = document.createElement("tr");
    row.append(...cells.map((text, i) => {
      const cell = document.createElement(i ? "td" : "th");
      if (!i) cell.scope = "row";
      cell.className = "n";
      cell.textContent = text;
      return cell;
    }));
    return row;
  });
  byId("steps-rows").replaceChildren(...rows);
}

// -- figures ----------------------------------------------------------------------------------

const renderer = (plot, name) => plot.renderers.filter((each) => each.name === name);
const setData = (plot, name, x, y) => {
  renderer(plot, name)[0].data_source.data = { x, y };
};
const annotation = (plot, name) => plot.center.find((each) => each.name === name);

// Ticks of a logarithmic axis: powers of ten, at most seven, or 1, 2 and 5 on a short interval.
function logTicks(from, to) {
  const [first, last] = [Math.floor(Math.log10(from)), Math.ceil(Math.log10(to))];
  const powers = Array.from({ length: last - first + 1 }, (_, i) => first + i);
  const ticks = powers.filter((k) => k % Math.ceil(powers.length / 7) === 0).map((k) => 10 ** k);
  const inside = (values) => values.filter((v) => v >= from * 0.999 && v <= to * 1.001);
  if (inside(ticks).length > 2) return inside(ticks);
  return inside(powers.flatMap((k) => [1, 2, 5].map((m) => Number(`${m}e${k}`))));
}

function setRange(plot, x, y) {
  for (const [axis, range, [start, end]] of [
    [plot.below[0], plot.x_range, x], [plot.left[0], plot.y_range, y]]) {
    range.setv({ start, end });
    if ("ticks" in axis.ticker) axis.ticker.setv({ ticks: logTicks(start, end) });
  }
}

function draw(found, steps, points) {
  const k = state.steps - 1;
  const error = found.error[k];
  const [low, high] = found.after[k];
  const { polynomials, image, error: errors, cost } = models;

  const inside = refined(points ?? [state.l, 1]);
  const grid = [...spaced(0, state.l, 30), ...inside.slice(1)];
  const values = grid.map((x) => compose(steps, x));
  const reached = k ? found.between[k - 1][1] : 1;
  const last = spaced(0, reached, 300);
  const lastValues = last.map((x) => evaluate(steps[k], x));
  setData(polynomials, "composition", grid, values);
  setData(polynomials, "last step", last, lastValues);
  annotation(polynomials, "band").setv({ bottom: low, top: high });
  const top = 1.08 * Math.max(high, ...values, ...lastValues);
  setRange(polynomials, [0, 1.03 * Math.max(1, reached)], [0, top]);

  const wide = [...spaced(state.l / 10, state.l, 100, true), ...inside.slice(1)];
  const images = wide.map((x) => compose(steps, x));
  setData(image, "composition", wide, images);
  annotation(image, "band").setv({ bottom: low, top: high });
  annotation(image, "end").setv({ location: state.l });
  setRange(image, [state.l / 10, 1], [0, 1.08 * Math.max(high, ...images)]);

  const e = (x) => compose(steps, x) - 1;
  const marked = points && points.length <= MARKED ? points : [];
  setData(errors, "composition", inside, inside.map(e));
  setData(errors, "extrema", marked, marked.map(e));
  const size = Math.max(error, 1e-16);
  annotation(errors, "above").setv({ location: size });
  annotation(errors, "below").setv({ location: -size });
  const most = error < RESOLVED ? 1e-15 : 1.15 * error;
  setRange(errors, [state.l, 1], [-most, most]);

  const index = lowerEnds().indexOf(state.l);
  const bounds = [];
  for (const [degree, each] of Object.entries(data.products)) {
    const other = data.designs[state.format][degree][index];
    const x = other.bound.map((_, i) => each * (i + 1));
    const y = other.bound.map((bound) => bound ?? NaN);
    bounds.push(...y.filter(Number.isFinite));
    for (const glyph of renderer(cost, `degree ${degree}`)) glyph.data_source.data = { x, y };
  }
  const products = data.products[state.degree] * state.steps;
  setData(cost, "chosen", [products], [found.bound[k] ?? NaN]);
  setRange(cost, [0, 25], [Math.min(...bounds) / 3, 2 * Math.max(...bounds)]);

  for (const name of Object.keys(models)) {
    const title = byId(`${name}-title`).textContent;
    byId(`plot-${name}`).setAttribute("aria-label", `${title}: ${byId("summary").textContent}`);
  }
}

function paint() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const c = COLOURS[dark ? "dark" : "light"];
  for (const plot of Object.values(models)) {
    plot.setv({ background_fill_color: c.ground, border_fill_color: c.ground,
      outline_line_color: c.line });
    for (const axis of [...plot.below, ...plot.left]) {
      axis.setv({ axis_label_text_color: c.text, major_label_text_color: c.text,
        axis_line_color: c.text, major_tick_line_color: c.text, minor_tick_line_color: c.text,
        axis_label_text_font_style: "normal", axis_label_text_font_size: "13px",
        major_label_text_font_size: "12px" });
    }
    for (const each of plot.center) {
      if ("grid_line_color" in each) each.setv({ grid_line_color: c.line, grid_line_alpha: 0.6 });
      if (each.name === "band") each.setv({ fill_color: c.band, fill_alpha: 0.35 });
      if (["end", "above", "below"].includes(each.name)) each.setv({ line_color: c.text });
      if ("label_text_color" in each) {
        each.setv({ label_text_color: c.text, background_fill_color: c.ground,
          background_fill_alpha: 0.85, border_line_color: c.line, label_text_font_size: "12px",
          padding: 4, spacing: 0 });
      }
    }
    for (const glyph of plot.renderers) {
      const degree = glyph.name.match(/^degree (\d)/);
      const role = degree ? DEGREE_COLOURS[degree[1]]
        : { composition: "first", "last step": "second", extrema: "second", chosen: "text" }[
          glyph.name];
      const settings = { line_color: c[role] };
      if ("fill_color" in glyph.glyph) settings.fill_color = c[role];
      for (const each of [glyph.glyph, glyph.muted_glyph, glyph.nonselection_glyph]) {
        if (each && "setv" in each) each.setv(settings);
      }
    }
  }
}

// -- controls ---------------------------------------------------------------------------------

function update() {
  const note = settle();
  const found = chain();
  const steps = [...found.inner.slice(0, state.steps - 1), found.last[state.steps - 1]];
  const ends = lowerEnds();
  byId("lower").setAttribute("max", ends.length - 1);
  byId("lower").value = ends.indexOf(state.l);
  byId("steps").setAttribute("max", found.last.length);
  byId("steps").value = state.steps;
  byId("degree").value = state.degree;
  byId("format").value = state.format;
  byId("note").textContent = note;
  const points = found.error[state.steps - 1] < RESOLVED ? null : extrema(steps, state.l);
  showTexts(found, steps, points);
  draw(found, steps, points);
}

function change(changes) {
  state = { ...state, ...changes };
  update();
  const { l, degree, steps, format } = state;
  history.replaceState(null, "", `#${new URLSearchParams({ l, degree, steps, format })}`);
}

async function copy() {
  const selection = getSelection();
  selection.selectAllChildren(byId("code"));
  try {
    await navigator.clipboard.writeText(byId("code").textContent);
    byId("copied").textContent = "Copied.";
  } catch {  // no permission: the text stays selected
    byId("copied").textContent = "Selected; copy it with the keyboard.";
  }
}

async function begin() {
  for (const [name, item] of Object.entries(items)) {
    const views = await Bokeh.embed.embed_item(item, `draw-${name}`);
    models[name] = [...views][0].model;
  }
  paint();
  readFragment();
  update();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  byId("lower").addEventListener("input", (e) => change({ l: lowerEnds()[e.target.value] }));
  byId("steps").addEventListener("input", (e) => change({ steps: Number(e.target.value) }));
  byId("degree").addEventListener("change", (e) => change({ degree: Number(e.target.value) }));
  byId("format").addEventListener("change", (e) => change({ format: e.target.value }));
  byId("copy").addEventListener("click", copy);
  addEventListener("hashchange", () => { readFragment(); update(); });
  document.documentElement.dataset.ready = "yes";
}
begin();
})();
