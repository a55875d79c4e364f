// The β explorer's arrays, colours and dots. Concatenated with explorer.js into one module, this file first.

const MISSING_CODE = 255;
const MISSING_LEVEL = 65535;
const SUBPIXELS = 4; // positions within a pixel in each direction, so that slowly moving dots do not jitter
const PADDING = 14; // CSS pixels kept free around the dots
const NEAR = 10; // CSS pixels within which the pointer finds a cell
const VIRIDIS = [
  [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
  [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37],
];

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function parsed(colour) {
  const value = parseInt(colour.slice(1), 16);
  return [(value >> 16) & 255, (value >> 8) & 255, value & 255];
}

function luminance(rgb) {
  const [r, g, b] = rgb.map((value) => (value <= 10 ? value / 3295 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** The colour, mixed with ink until its contrast with the background is at least 2 by WCAG's formula. */
function seen(rgb, scheme) {
  const contrast = (one, other) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  for (let share = 0; ; share += 0.1) {
    const mixed = rgb.map((value, i) => Math.round(value + share * (scheme.ink[i] - value)));
    if (share > 0.85 || contrast(luminance(mixed), luminance(scheme.back)) >= 2) return mixed;
  }
}

const css = (rgb) => `rgb(${rgb.join(" ")})`;

function viridis(share) {
  const place = clamp(share, 0, 1) * (VIRIDIS.length - 1);
  const i = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[i].map((low, channel) => Math.round(low + (place - i) * (VIRIDIS[i + 1][channel] - low)));
}

/** The arrays in the buffer: coordinates (int16, β by β) and, for each colour, category codes or number levels. */
function unpack(record, view) {
  const bytes = view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
  const n = record.n_cells;
  const colours = record.colors.map((colour) =>
    colour.kind === "category" ? new Uint8Array(bytes, colour.offset, n) : new Uint16Array(bytes, colour.offset, n),
  );
  return { places: new Int16Array(bytes, 0, 2 * n * record.betas.length), colours };
}

/** The order in which cells are drawn: missing values first, then numbers ascending or categories in random order. */
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

/** For each position within a pixel: offsets in the image to the pixels of a dot, and their coverage. */
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
    this.at = new Float32Array(2 * record.n_cells); // position of each cell in canvas pixels
  }

  /** Adopts the canvas size on the screen; returns false if it is empty. */
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

  /** Moves the cells to `place` among the β: 1.25 is a quarter of the way from the second to the third. */
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

  /** Draws the cells in `order`; `colourOf(cell)` is the index of a colour in `palette` (bytes r g b). */
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

  /** The cell nearest to a point on the screen, in CSS pixels; -1 if none is near. */
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

/** Each cell's index into the palette, and the palette, whose second half repeats the first in faded colours. */
function paletteOf(colour, values, { back, missing, categories }) {
  const shades = [...categories];
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
