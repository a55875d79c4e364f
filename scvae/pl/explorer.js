// The β explorer: one module for the Jupyter widget (anywidget calls `render`) and for the HTML page (which does, too).
// `model` has get, set, save_changes, on and off. All text reaches the page through textContent, so none is markup.

const SWEEP = 9000; // milliseconds that playing takes from the smallest β to the largest
const STEPS = 500; // of the slider
const MISSING_CODE = 255;
const MISSING_LEVEL = 65535;
const SUBPIXELS = 4; // places within a pixel at which a dot is drawn, so that slow dots do not jitter
const PADDING = 14; // CSS pixels kept free around the dots
const NEAR = 10; // CSS pixels within which the pointer finds a cell
const VIRIDIS = [
  [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
  [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37],
];

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
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function parsed(colour) {
  const value = parseInt(colour.slice(1), 16);
  return [(value >> 16) & 255, (value >> 8) & 255, value & 255];
}

function viridis(share) {
  const place = clamp(share, 0, 1) * (VIRIDIS.length - 1);
  const i = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[i].map((low, channel) => Math.round(low + (place - i) * (VIRIDIS[i + 1][channel] - low)));
}

/** Whether the page around is dark: as JupyterLab, VS Code or a documentation site says, else as the system does. */
function isDark() {
  const { body, documentElement } = document;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false";
  if (body.classList.contains("vscode-light")) return false;
  if (body.classList.contains("vscode-dark") || body.classList.contains("vscode-high-contrast")) return true;
  if (["dark", "light"].includes(documentElement.dataset.theme)) return documentElement.dataset.theme === "dark";
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

/** The arrays in the buffer: places (int16, β by β) and, for each colour, codes of categories or levels of a number. */
function unpack(record, view) {
  const bytes = view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
  const n = record.n_cells;
  const colours = record.colors.map((colour) =>
    colour.kind === "category" ? new Uint8Array(bytes, colour.offset, n) : new Uint16Array(bytes, colour.offset, n),
  );
  return { places: new Int16Array(bytes, 0, 2 * n * record.betas.length), colours };
}

/** The order in which cells are drawn: large numbers over small ones, categories in an order of chance, missing first. */
function orderOf(colour, values, n) {
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  if (colour.kind === "number") {
    const rank = (i) => (values[i] === MISSING_LEVEL ? -1 : values[i]);
    return order.sort((a, b) => rank(a) - rank(b));
  }
  let state = 1;
  for (let i = n - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((state / 4294967296) * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  const missing = order.filter((i) => values[i] === MISSING_CODE);
  const known = order.filter((i) => values[i] !== MISSING_CODE);
  order.set(missing);
  order.set(known, missing.length);
  return order;
}

/** For each place within a pixel: steps in the image to the pixels of a dot, and how much of each it covers. */
function dotMasks(radius, width) {
  const masks = [];
  const reach = Math.ceil(radius + 0.5);
  for (let v = 0; v < SUBPIXELS; v++) {
    for (let u = 0; u < SUBPIXELS; u++) {
      const steps = [];
      const cover = [];
      for (let y = -reach; y <= reach + 1; y++) {
        for (let x = -reach; x <= reach + 1; x++) {
          const share = clamp(radius + 0.5 - Math.hypot(x - u / SUBPIXELS, y - v / SUBPIXELS), 0, 1);
          if (share > 0.02) {
            steps.push(4 * (y * width + x));
            cover.push(share);
          }
        }
      }
      masks.push({ steps: Int32Array.from(steps), cover: Float32Array.from(cover) });
    }
  }
  return masks;
}

class Dots {
  constructor(canvas, record, places) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.record = record;
    this.places = places;
    this.at = new Float32Array(2 * record.n_cells); // where each cell is, in pixels of the canvas
  }

  /** Takes the size on the screen; false if there is none. */
  resize() {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const width = Math.round(this.canvas.clientWidth * ratio);
    const height = Math.round(this.canvas.clientHeight * ratio);
    if (!width || !height) return false;
    this.ratio = ratio;
    this.canvas.width = width;
    this.canvas.height = height;
    this.image = this.context.createImageData(width, height);
    const { extent, n_cells } = this.record;
    const free = (pixels) => Math.max(pixels - 2 * PADDING * ratio, 1) / 2;
    this.scale = Math.min(free(width) / Math.max(extent[0], 1), free(height) / Math.max(extent[1], 1));
    const area = (this.canvas.clientWidth * this.canvas.clientHeight) / Math.max(n_cells, 1);
    this.radius = clamp(0.17 * Math.sqrt(area), 0.9, 4.5) * ratio;
    this.masks = dotMasks(this.radius, width);
    return true;
  }

  /** Moves the cells to `place` among the β's: 1.25 is a quarter of the way from the second to the third. */
  move(place) {
    const { n_cells, betas } = this.record;
    const i = Math.min(Math.floor(place), betas.length - 2);
    const share = place - i;
    const here = 2 * n_cells * i;
    const next = here + 2 * n_cells;
    const [x, y] = [this.image.width / 2, this.image.height / 2];
    for (let k = 0; k < 2 * n_cells; k += 2) {
      const a = this.places[here + k] * (1 - share) + this.places[next + k] * share;
      const b = this.places[here + k + 1] * (1 - share) + this.places[next + k + 1] * share;
      this.at[k] = x + a * this.scale;
      this.at[k + 1] = y - b * this.scale;
    }
  }

  /** Draws the cells in `order`; `colourOf(cell)` is the number of a colour in `palette`, bytes r g b. */
  paint(order, colourOf, palette, back) {
    const { data, width } = this.image;
    new Uint32Array(data.buffer).fill((255 << 24) | (back[2] << 16) | (back[1] << 8) | back[0]);
    for (const cell of order) {
      const c = 3 * colourOf(cell);
      const [r, g, b] = [palette[c], palette[c + 1], palette[c + 2]];
      const u = Math.floor(this.at[2 * cell] * SUBPIXELS);
      const v = Math.floor(this.at[2 * cell + 1] * SUBPIXELS);
      const mask = this.masks[(v & 3) * SUBPIXELS + (u & 3)];
      const corner = 4 * ((v >> 2) * width + (u >> 2));
      const { steps, cover } = mask;
      for (let k = 0; k < steps.length; k++) {
        const p = corner + steps[k];
        const share = cover[k];
        if (share === 1) {
          data[p] = r;
          data[p + 1] = g;
          data[p + 2] = b;
        } else {
          data[p] += (r - data[p]) * share;
          data[p + 1] += (g - data[p + 1]) * share;
          data[p + 2] += (b - data[p + 2]) * share;
        }
      }
    }
    this.context.putImageData(this.image, 0, 0);
  }

  /** The cell nearest to a place on the screen, in CSS pixels; -1 if none is near. */
  nearest(x, y) {
    let best = -1;
    let least = (NEAR * this.ratio) ** 2;
    for (let cell = 0; cell < this.record.n_cells; cell++) {
      const distance = (this.at[2 * cell] - x * this.ratio) ** 2 + (this.at[2 * cell + 1] - y * this.ratio) ** 2;
      if (distance < least) [best, least] = [cell, distance];
    }
    return best;
  }
}

/** About three round numbers within a range. */
function roundTicks(low, high) {
  const rough = (high - low) / 3;
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough);
  const ticks = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) ticks.push(Number((k * step).toPrecision(10)));
  return ticks;
}

/** Distortion against rate; returns what moves the point to a place among the β's. */
function drawCurve(parent, record) {
  const [left, right, top, bottom] = [50, 262, 14, 156];
  const svg = drawn("svg", { viewBox: "0 0 280 196", class: "scvae-curve", role: "img" }, parent);
  svg.setAttribute("aria-label", "Distortion against rate along β, with the point at the β chosen");
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

/** Where a β lies among the β's, between them by its logarithm. */
function placeOf(betas, beta) {
  const last = betas.length - 1;
  for (let i = 0; i < last; i++) {
    if (beta <= betas[i + 1]) return i + clamp(Math.log(beta / betas[i]) / Math.log(betas[i + 1] / betas[i]), 0, 1);
  }
  return last;
}

/** Ticks under the slider: 1, 2 and 5 times powers of ten as far as they have room, and the β recommended. */
function drawTicks(parent, record, share) {
  const [low, high] = [record.betas[0], record.betas.at(-1)];
  const candidates = [];
  for (const factors of [[1], [3], [2, 5]]) {
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high) + 1; power++) {
      candidates.push(...factors.map((factor) => Number((factor * 10 ** power).toPrecision(2))));
    }
  }
  const taken = [];
  const put = (beta, text, name, room) => {
    const left = share(beta);
    if (left < 0 || left > 1 || taken.some(([other, its]) => Math.abs(left - other) < (room + its) / 2)) return;
    taken.push([left, room]);
    make("span", name, parent, text).style.left = `${100 * left}%`;
  };
  if (record.recommended !== null) {
    put(record.recommended, `${short(record.recommended)} recommended`, "scvae-recommended", 0.4);
  }
  for (const beta of [low, high, ...candidates]) put(beta, short(beta), "", 0.1);
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

/** The legend of one colour; `onPick(code, lasts)` is told which category to bring out, null for none. */
function drawLegend(parent, colour, values, onPick) {
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
    colour.categories.forEach((name, code) => add(code, name, colour.colors[code]));
  } else {
    const stops = VIRIDIS.map((rgb) => `rgb(${rgb.join(" ")})`).join(", ");
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

/** The number in the palette of each cell's colour, and the palette; twice as long, the second half faded. */
function paletteOf(colour, values, back, missing) {
  const shades = colour.kind === "category" ? colour.colors.map(parsed) : [];
  if (colour.kind === "number") for (let i = 0; i < 256; i++) shades.push(viridis(i / 255));
  shades.push(missing);
  const faded = shades.map((rgb) => rgb.map((value, i) => Math.round(back[i] + 0.12 * (value - back[i]))));
  const [low, high] = colour.kind === "number" ? colour.shown : [0, 1];
  const whole = colour.high - colour.low;
  const number = (value) => {
    if (colour.kind === "category") return value === MISSING_CODE ? shades.length - 1 : value;
    if (value === MISSING_LEVEL) return shades.length - 1;
    const share = (colour.low + (value / (MISSING_LEVEL - 1)) * whole - low) / (high - low || 1);
    return Math.round(255 * clamp(share, 0, 1));
  };
  return { of: Uint16Array.from(values, number), shades: Uint8Array.from([...shades, ...faded].flat()), n: shades.length };
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
  drawTicks(make("div", "scvae-ticks", dial), record, shareOf);
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
  canvas.setAttribute("aria-label", `UMAP of ${grouped(record.n_cells)} cells at the β chosen`);
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
  /** The order with the cells of one code or level at the end, over all others; made once, not for every frame. */
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
    const dark = isDark();
    root.classList.toggle("scvae-dark", dark);
    const style = getComputedStyle(root);
    scheme = { back: parsed(style.getPropertyValue("--back").trim()), missing: parsed(style.getPropertyValue("--missing").trim()) };
    const colour = record.colors[state.colour];
    paint = paletteOf(colour, colours[state.colour], scheme.back, scheme.missing);
    order = orderOf(colour, colours[state.colour], record.n_cells);
    over = null;
    schedule();
  }
  function choose(i) {
    Object.assign(state, { colour: i, pinned: null, hovered: null });
    select.value = i;
    drawLegend(legend, record.colors[i], colours[i], (code, lasts) => {
      state[lasts ? "pinned" : "hovered"] = code;
      schedule();
    });
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
    if (dots.resize()) schedule();
  });
  size.observe(plot);
  size.observe(root);
  const theme = new MutationObserver(recolour);
  theme.observe(document.body, { attributes: true, attributeFilter: ["class", "data-jp-theme-light"] });
  theme.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", recolour);

  choose(Math.max(record.colors.findIndex((colour) => colour.name === model.get("color")), 0));
  setBeta(state.beta);
  return () => {
    cancelAnimationFrame(frame);
    size.disconnect();
    theme.disconnect();
    system.removeEventListener("change", recolour);
    for (const [name, call] of Object.entries(fromPython)) model.off(name, call);
    root.remove();
  };
}

export default { render };
