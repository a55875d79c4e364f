// The β explorer: one module for the Jupyter widget and the HTML page; anywidget or the page calls `render`.
// `model` has get, set, save_changes, on and off. Text is set through textContent only, so it is never read as markup.

const SWEEP = 9000; // milliseconds to play from the smallest β to the largest
const STEPS = 500; // steps of the slider

function make(tag, name, parent, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function drawn(tag, attributes, parent, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

const short = (value) => (value === 0 ? "0" : String(Number(value.toPrecision(3))));
const grouped = (count) => count.toLocaleString("en");

/** Whether the surrounding page is dark: by JupyterLab, VS Code or the documentation site, else by the system. */
function isDark() {
  const { body, documentElement } = document;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false";
  if (body.classList.contains("vscode-light")) return false;
  if (body.classList.contains("vscode-dark") || body.classList.contains("vscode-high-contrast")) return true;
  if (["dark", "light"].includes(documentElement.dataset.theme)) return documentElement.dataset.theme === "dark";
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Three to seven round numbers in a range: multiples of 1, 2 or 5 times a power of ten. */
function roundTicks(low, high) {
  let power = 10 ** Math.ceil(Math.log10(high - low));
  for (;; power /= 10) {
    for (const step of [5 * power, 2 * power, power]) {
      const [first, last] = [Math.ceil(low / step), Math.floor(high / step)];
      if (last - first < 2) continue;
      return Array.from({ length: last - first + 1 }, (_, k) => Number(((first + k) * step).toPrecision(10)));
    }
  }
}

/** Draws distortion against rate; returns a function that moves the point to a position among the β. */
function drawCurve(parent, record) {
  const [left, right, top, bottom] = [50, 262, 14, 156];
  const svg = drawn("svg", { viewBox: "0 0 280 196", class: "scvae-curve", role: "img" }, parent);
  svg.setAttribute("aria-label", "Distortion against rate, with a point at the selected β");
  const range = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const margin = 0.08 * (high - low || 1);
    return [low - margin, high + margin];
  };
  const [x0, x1] = range(record.rate);
  const [y0, y1] = range(record.distortion);
  const x = (rate) => left + ((rate - x0) / (x1 - x0)) * (right - left);
  const y = (distortion) => bottom - ((distortion - y0) / (y1 - y0)) * (bottom - top);
  drawn("path", { d: `M${left} ${top}V${bottom}H${right}`, fill: "none", stroke: "var(--soft)" }, svg);
  for (const tick of roundTicks(x0, x1)) {
    drawn("path", { d: `M${x(tick)} ${bottom}v4`, stroke: "var(--soft)" }, svg);
    drawn("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, svg, String(tick));
  }
  for (const tick of roundTicks(y0, y1)) {
    drawn("path", { d: `M${left} ${y(tick)}h-4`, stroke: "var(--soft)" }, svg);
    drawn("text", { x: left - 7, y: y(tick) + 4, "text-anchor": "end" }, svg, String(tick));
  }
  const middle = [(left + right) / 2, (top + bottom) / 2];
  drawn("text", { x: middle[0], y: bottom + 34, "text-anchor": "middle" }, svg, "rate R (nats per cell)");
  const upright = { "text-anchor": "middle", transform: `translate(11 ${middle[1]}) rotate(-90)` };
  drawn("text", upright, svg, "distortion D (nats per cell)");
  const points = record.rate.map((rate, i) => [x(rate), y(record.distortion[i])]);
  drawn("polyline", { points: points.join(" "), fill: "none", stroke: "var(--ink)", "stroke-width": 1.2 }, svg);
  for (const [cx, cy] of points) drawn("circle", { cx, cy, r: 2, fill: "var(--ink)" }, svg);
  const between = (values, place) => {
    const i = Math.min(Math.floor(place), values.length - 2);
    return values[i] + (place - i) * (values[i + 1] - values[i]);
  };
  if (record.recommended !== null) {
    const place = placeOf(record.betas, record.recommended);
    const ring = { r: 7, fill: "none", stroke: "var(--mark)", "stroke-width": 2 };
    drawn("circle", { cx: x(between(record.rate, place)), cy: y(between(record.distortion, place)), ...ring }, svg);
  }
  const point = drawn("circle", { r: 5, fill: "var(--main)", class: "scvae-point" }, svg);
  const told = drawn("text", { x: right, y: top, "text-anchor": "end" }, svg);
  return (place) => {
    const [rate, distortion] = [between(record.rate, place), between(record.distortion, place)];
    point.setAttribute("cx", x(rate));
    point.setAttribute("cy", y(distortion));
    told.textContent = `R ${rate.toFixed(2)}, D ${distortion.toFixed(1)}`;
  };
}

/** Position of a β among the β of the record, interpolated on a log scale. */
function placeOf(betas, beta) {
  const last = betas.length - 1;
  for (let i = 0; i < last; i++) {
    if (beta <= betas[i + 1]) return i + clamp(Math.log(beta / betas[i]) / Math.log(betas[i + 1] / betas[i]), 0, 1);
  }
  return last;
}

/** Draws ticks below the slider; returns a function that hides ticks without room, least important first. */
function drawTicks(parent, record, shareOf) {
  const [low, high] = [record.betas[0], record.betas.at(-1)];
  const candidates = [];
  for (const factors of [[1], [3], [2, 5]]) {
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      candidates.push(...factors.map((factor) => Number((factor * 10 ** power).toPrecision(2))));
    }
  }
  const ticks = [];
  const put = (beta, text, name) => {
    const tick = make("span", name, parent, text);
    tick.style.left = `${100 * shareOf(beta)}%`;
    ticks.push(tick);
  };
  if (record.recommended !== null) put(record.recommended, `${short(record.recommended)} recommended`, "scvae-recommended");
  for (const beta of [low, high, ...candidates]) if (beta >= low && beta <= high) put(beta, short(beta), "");
  return () => {
    const taken = [];
    for (const tick of ticks) {
      const { left, right } = tick.getBoundingClientRect();
      const free = taken.every((other) => right + 6 < other.left || left - 6 > other.right);
      tick.style.visibility = free ? "visible" : "hidden";
      if (free) taken.push({ left, right });
    }
  };
}

function legendEntry(parent, name, colour, count, isMissing) {
  const entry = make("button", "scvae-entry", parent);
  entry.type = "button";
  entry.setAttribute("aria-pressed", "false");
  make("span", "scvae-dot", entry).style.background = isMissing ? "var(--missing)" : colour;
  make("span", "scvae-name", entry, name);
  make("span", "scvae-count", entry, grouped(count));
  return entry;
}

/** Draws the legend of one colour; calls `onPick(code, lasts)` with the category to highlight, null for none. */
function drawLegend(parent, colour, values, categories, onPick) {
  parent.replaceChildren();
  const missingCode = colour.kind === "category" ? MISSING_CODE : MISSING_LEVEL;
  const counts = new Map();
  for (const value of values) if (colour.kind === "category" || value === missingCode) {
    counts.set(value, (counts.get(value) || 0) + 1);
  }
  const entries = [];
  const add = (code, name, paint) => {
    const entry = legendEntry(parent, name, paint, counts.get(code) || 0, code === missingCode);
    entry.addEventListener("pointerenter", () => onPick(code, false));
    entry.addEventListener("pointerleave", () => onPick(null, false));
    entry.addEventListener("click", () => {
      const pressed = entry.getAttribute("aria-pressed") !== "true";
      for (const other of entries) other.setAttribute("aria-pressed", String(other === entry && pressed));
      onPick(pressed ? code : null, true);
    });
    entries.push(entry);
  };
  if (colour.kind === "category") {
    colour.categories.forEach((name, code) => add(code, name, css(categories[code])));
  } else {
    const stops = VIRIDIS.map(css).join(", ");
    make("div", "scvae-ramp", parent).style.background = `linear-gradient(90deg, ${stops})`;
    const ends = make("div", "scvae-ends", parent);
    const [low, high] = colour.shown;
    make("span", "", ends, `${colour.low < low ? "≤ " : ""}${short(low)}`);
    make("span", "", ends, `${colour.high > high ? "≥ " : ""}${short(high)}`);
  }
  if (counts.has(missingCode)) add(missingCode, "missing", "");
}

function describe(colour, value) {
  if (colour.kind === "category") return value === MISSING_CODE ? "missing" : colour.categories[value];
  if (value === MISSING_LEVEL) return "missing";
  return short(colour.low + (value / (MISSING_LEVEL - 1)) * (colour.high - colour.low));
}

function render({ model, el }) {
  const record = model.get("record");
  const { places, colours } = unpack(record, model.get("buffer"));
  const last = record.betas.length - 1;
  const span = Math.log(record.betas[last] / record.betas[0]);
  const shareOf = (beta) => Math.log(beta / record.betas[0]) / span;
  const betaOf = (share) => clamp(record.betas[0] * Math.exp(share * span), record.betas[0], record.betas[last]);

  const root = make("div", "scvae-explorer", el);
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", "β explorer");
  const bar = make("div", "scvae-bar", root);
  const play = make("button", "scvae-play", bar, "▶ play");
  play.type = "button";
  const dial = make("div", "scvae-dial", bar);
  const slider = make("input", "", dial);
  Object.assign(slider, { type: "range", min: 0, max: STEPS, step: 1 });
  slider.setAttribute("aria-label", "β, on a log scale");
  const fitTicks = drawTicks(make("div", "scvae-ticks", dial), record, shareOf);
  const value = make("output", "scvae-value", bar);
  const chooser = make("label", "scvae-colour", bar);
  make("span", "", chooser, "colour");
  const select = make("select", "", chooser);
  record.colors.forEach((colour, i) => {
    make("option", "", select, colour.name).value = i;
  });
  chooser.hidden = record.colors.length < 2;
  const main = make("div", "scvae-main", root);
  const plot = make("div", "scvae-plot", main);
  const canvas = make("canvas", "", plot);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `UMAP of ${grouped(record.n_cells)} cells at the selected β`);
  const tip = make("div", "scvae-tip", plot);
  const side = make("div", "scvae-side", main);
  const movePoint = drawCurve(side, record);
  const legend = make("div", "scvae-legend", side);
  make("p", "scvae-note", root, record.note);

  const dots = new Dots(canvas, record, places);
  const state = { beta: model.get("beta"), colour: 0, pinned: null, hovered: null, playing: 0, direction: 1 };
  let scheme = null;
  let paint = null;
  let order = null;
  let over = null;
  let frame = 0;

  const schedule = () => {
    if (!frame) frame = requestAnimationFrame(draw);
  };
  function draw(now) {
    frame = 0;
    if (state.playing) advance(now);
    const place = placeOf(record.betas, state.beta);
    movePoint(place);
    const text = short(state.beta);
    value.textContent = `β = ${text}`;
    slider.setAttribute("aria-valuetext", text);
    root.dataset.beta = state.beta;
    if (!dots.image) return;
    dots.move(place);
    const chosen = state.hovered ?? state.pinned;
    const values = colours[state.colour];
    const colourOf = chosen === null ? (i) => paint.of[i] : (i) => paint.of[i] + (values[i] === chosen ? 0 : paint.n);
    dots.paint(chosen === null ? order : lastInOrder(chosen), colourOf, paint.shades, scheme.back);
    if (state.playing) schedule();
  }
  /** The drawing order with the cells of one code or level last, on top of the others; cached between frames. */
  function lastInOrder(chosen) {
    if (over?.chosen !== chosen) {
      const values = colours[state.colour];
      const sequence = new Uint32Array(order.length);
      const others = order.filter((i) => values[i] !== chosen);
      sequence.set(others);
      sequence.set(order.filter((i) => values[i] === chosen), others.length);
      over = { chosen, sequence };
    }
    return over.sequence;
  }
  function advance(now) {
    const step = (state.direction * Math.min(now - state.playing, 100)) / SWEEP;
    state.playing = now;
    const share = shareOf(state.beta) + step;
    if (share >= 1 || share <= 0) state.direction = share >= 1 ? -1 : 1;
    state.beta = betaOf(clamp(share, 0, 1));
    slider.value = Math.round(STEPS * clamp(share, 0, 1));
  }
  function recolour() {
    Object.assign(state, { pinned: null, hovered: null });
    root.classList.toggle("scvae-dark", isDark());
    const style = getComputedStyle(root);
    const shade = (name) => parsed(style.getPropertyValue(name).trim());
    scheme = { back: shade("--back"), ink: shade("--ink"), missing: shade("--missing") };
    const colour = record.colors[state.colour];
    const categories = colour.kind === "category" ? colour.colors.map((hex) => seen(parsed(hex), scheme)) : [];
    paint = paletteOf(colour, colours[state.colour], { ...scheme, categories });
    drawLegend(legend, colour, colours[state.colour], categories, (code, lasts) => {
      state[lasts ? "pinned" : "hovered"] = code;
      schedule();
    });
    order = orderOf(colour, colours[state.colour], record.n_cells);
    over = null;
    schedule();
  }
  function choose(i) {
    state.colour = i;
    select.value = i;
    recolour();
  }
  function setBeta(beta) {
    state.beta = beta;
    slider.value = Math.round(STEPS * shareOf(beta));
    tip.style.visibility = "hidden";
    schedule();
  }
  function tell(name, what) {
    model.set(name, what);
    model.save_changes();
  }
  function setPlaying(on) {
    state.playing = on ? performance.now() : 0;
    play.textContent = on ? "❚❚ pause" : "▶ play";
    tip.style.visibility = "hidden";
    if (!on) tell("beta", state.beta);
    schedule();
  }

  play.addEventListener("click", () => setPlaying(!state.playing));
  slider.addEventListener("input", () => {
    if (state.playing) setPlaying(false);
    state.beta = betaOf(slider.value / STEPS);
    tip.style.visibility = "hidden";
    schedule();
  });
  slider.addEventListener("change", () => tell("beta", state.beta));
  select.addEventListener("change", () => {
    choose(Number(select.value));
    tell("color", record.colors[state.colour].name);
  });
  canvas.addEventListener("pointerleave", () => {
    tip.style.visibility = "hidden";
  });
  canvas.addEventListener("pointermove", (event) => {
    const cell = state.playing || !dots.image ? -1 : dots.nearest(event.offsetX, event.offsetY);
    tip.style.visibility = cell < 0 ? "hidden" : "visible";
    if (cell < 0) return;
    const colour = record.colors[state.colour];
    tip.replaceChildren();
    make("b", "", tip, describe(colour, colours[state.colour][cell]));
    make("span", "", tip, record.names[cell]);
    const [x, y] = [dots.at[2 * cell] / dots.ratio, dots.at[2 * cell + 1] / dots.ratio];
    tip.style.left = `${clamp(x + 12, 0, Math.max(plot.clientWidth - tip.offsetWidth - 2, 0))}px`;
    tip.style.top = `${y + 12 + tip.offsetHeight < plot.clientHeight ? y + 12 : Math.max(y - 12 - tip.offsetHeight, 0)}px`;
  });

  const fromPython = {
    "change:beta": () => {
      if (model.get("beta") !== state.beta) setBeta(model.get("beta"));
    },
    "change:color": () => {
      const i = record.colors.findIndex((colour) => colour.name === model.get("color"));
      if (i >= 0 && i !== state.colour) choose(i);
    },
  };
  for (const [name, call] of Object.entries(fromPython)) model.on(name, call);
  const size = new ResizeObserver(() => {
    root.classList.toggle("scvae-narrow", root.clientWidth < 640);
    fitTicks();
    if (dots.resize()) schedule();
  });
  size.observe(plot);
  size.observe(root);
  const follow = () => {
    if (isDark() !== root.classList.contains("scvae-dark")) recolour();
  };
  const theme = new MutationObserver(follow);
  theme.observe(document.body, { attributes: true, attributeFilter: ["class", "data-jp-theme-light"] });
  theme.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", follow);

  choose(Math.max(record.colors.findIndex((colour) => colour.name === model.get("color")), 0));
  setBeta(state.beta);
  return () => {
    cancelAnimationFrame(frame);
    size.disconnect();
    theme.disconnect();
    system.removeEventListener("change", follow);
    for (const [name, call] of Object.entries(fromPython)) model.off(name, call);
    root.remove();
  };
}

export default { render };
