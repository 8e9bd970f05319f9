/** A small line chart as SVG, for a results page. */

export interface Line {
  name: string;
  points: readonly (readonly [x: number, y: number])[];
}

const WIDTH = 720;
const HEIGHT = 320;
const MARGIN = { left: 56, right: 150, top: 32, bottom: 44 };
/** Told apart in grey and by the colour-blind (Okabe and Ito). */
const COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00'];

const entities = (text: string): string =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');

/** 1, 2 or 5 times a power of ten, so that about `count` ticks fit. */
function ticks(low: number, high: number, count: number): number[] {
  const raw = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const unit = power * ([1, 2, 5, 10].find((m) => m * power >= raw) as number);
  const list: number[] = [];
  for (let x = Math.ceil(low / unit) * unit; x <= high + unit * 1e-9; x += unit) list.push(Number(x.toPrecision(6)));
  return list;
}

export function lineChart(title: string, axes: { x: string; y: string }, lines: readonly Line[]): string {
  const points = lines.flatMap((line) => line.points).filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
  const xs = points.map(([x]) => x);
  const ys = points.map(([, y]) => y);
  const [x0, x1, y0, y1] = [Math.min(0, ...xs), Math.max(1, ...xs), Math.min(...ys), Math.max(...ys)];
  const pad = (y1 - y0 || 1) * 0.05;
  const [low, high] = [y0 - pad, y1 + pad];
  const px = (x: number): string =>
    (MARGIN.left + ((x - x0) / (x1 - x0)) * (WIDTH - MARGIN.left - MARGIN.right)).toFixed(1);
  const py = (y: number): string =>
    (HEIGHT - MARGIN.bottom - ((y - low) / (high - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom)).toFixed(1);
  const right = WIDTH - MARGIN.right;
  const bottom = HEIGHT - MARGIN.bottom;
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12" role="img" aria-label="${entities(title)}">`,
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="#fff"/>`,
    `<text x="${MARGIN.left}" y="18" font-size="14" fill="#111">${entities(title)}</text>`,
  ];
  for (const y of ticks(low, high, 5)) {
    parts.push(
      `<line x1="${MARGIN.left}" x2="${right}" y1="${py(y)}" y2="${py(y)}" stroke="#ddd"/>`,
      `<text x="${MARGIN.left - 6}" y="${py(y)}" dy="4" text-anchor="end" fill="#444">${y}</text>`,
    );
  }
  for (const x of ticks(x0, x1, 6)) {
    parts.push(`<text x="${px(x)}" y="${bottom + 16}" text-anchor="middle" fill="#444">${x}</text>`);
  }
  parts.push(
    `<text x="${(MARGIN.left + right) / 2}" y="${HEIGHT - 8}" text-anchor="middle" fill="#444">${entities(axes.x)}</text>`,
    `<text transform="translate(14 ${(MARGIN.top + bottom) / 2}) rotate(-90)" text-anchor="middle" fill="#444">${entities(axes.y)}</text>`,
  );
  lines.forEach((line, i) => {
    const colour = COLOURS[i % COLOURS.length] as string;
    const path = line.points.map(([x, y]) => `${px(x)},${py(y)}`).join(' ');
    parts.push(
      `<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="1.6"/>`,
      `<line x1="${right + 10}" x2="${right + 28}" y1="${MARGIN.top + 18 * i}" y2="${MARGIN.top + 18 * i}" stroke="${colour}" stroke-width="3"/>`,
      `<text x="${right + 34}" y="${MARGIN.top + 18 * i}" dy="4" fill="#111">${entities(line.name)}</text>`,
    );
  });
  return `${parts.join('\n')}\n</svg>\n`;
}
