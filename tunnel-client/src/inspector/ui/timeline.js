// @ts-check
// The last 15 minutes at a glance: bars are counts, the hatched part failed, dots are latencies on a log scale.

import { fill, h, svg } from './dom.js';
import * as format from './format.js';

/** @import { Exchanges } from './exchanges.js' */

const MINUTES = 15;
const BUCKET = 10_000;
const BUCKETS = (MINUTES * 60_000) / BUCKET;
const PAUSE = 500;
const HEIGHT = 36;
const AXIS = 13;
// The log scale goes from 1 ms at the bottom to 30 s, the default --timeout, at the top.
const LOG_TOP = Math.log10(30_000);

/** @typedef {{ count: number, failed: number, latencies: number[] }} Bucket */

export class Timeline {
  #text = h('p', { class: 'timeline-text' });
  #chart = svg('svg', { role: 'img', height: HEIGHT + AXIS });
  #selection = svg('rect', { class: 'selection', y: 0, height: HEIGHT, hidden: true });
  /** @type {Bucket[]} */
  #buckets = [];
  #start = 0;
  #width = 0;
  #timer = 0;
  #updated = -PAUSE;
  /** @type {number | null} where a drag began */
  #drag = null;

  /**
   * @param {{ root: HTMLElement, exchanges: Exchanges, select: (since: string, until: string) => void, jump: (time: number) => void }} options
   */
  constructor({ root, exchanges, select, jump }) {
    this.exchanges = exchanges;
    this.select = select;
    this.jump = jump;
    root.append(this.#text, this.#chart);
    new ResizeObserver(() => this.#draw()).observe(this.#chart);
    setInterval(() => this.update(), BUCKET / 2);
    this.#chart.addEventListener('pointerdown', (event) => this.#down(event));
    this.#chart.addEventListener('pointermove', (event) => this.#move(event));
    this.#chart.addEventListener('pointerup', (event) => this.#up(event));
    this.#chart.addEventListener('pointercancel', () => this.#endDrag());
    this.#chart.addEventListener('pointerleave', () => this.#describe());
  }

  /** Draws again soon; at most twice a second, however many exchanges come. */
  update() {
    this.#timer ||= setTimeout(() => {
      this.#timer = 0;
      this.#updated = performance.now();
      if (this.#drag === null) this.#draw();
    }, this.#updated + PAUSE - performance.now());
  }

  /** Draws now, as after another filter. */
  #draw() {
    this.#width = this.#chart.clientWidth;
    if (!this.#width) return;
    this.#fill();
    const most = Math.max(4, ...this.#buckets.map((bucket) => bucket.count));
    const step = this.#width / BUCKETS;
    let bars = '';
    let failed = '';
    let dots = '';
    this.#buckets.forEach((bucket, index) => {
      if (bucket.count === 0) return;
      const x = index * step;
      const bar = (/** @type {number} */ n) => `M${(x + 0.5).toFixed(1)} ${HEIGHT}h${Math.max(1, step - 1).toFixed(1)}v${(-(n / most) * (HEIGHT - 2)).toFixed(1)}h${(-Math.max(1, step - 1)).toFixed(1)}z`;
      bars += bar(bucket.count);
      if (bucket.failed) failed += bar(bucket.failed);
      // One dot for the quickest, the median and the slowest says as much as a hundred.
      for (const ms of spread(bucket.latencies)) dots += `M${(x + step / 2).toFixed(1)} ${latencyY(ms).toFixed(1)}h0`;
    });
    fill(this.#chart,
      svg('defs', {}, svg('pattern', { id: 'hatch', width: 4, height: 4, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' },
        svg('rect', { class: 'hatch-ground', width: 4, height: 4 }), svg('rect', { class: 'hatch-line', width: 1.5, height: 4 }))),
      svg('line', { class: 'axis', x1: 0, x2: this.#width, y1: HEIGHT + 0.5, y2: HEIGHT + 0.5 }),
      svg('path', { class: 'bars', d: bars }),
      svg('path', { class: 'failed', d: failed, fill: 'url(#hatch)' }),
      svg('path', { class: 'dots', d: dots }),
      ...this.#ticks(), this.#selection);
    this.#describe();
  }

  #fill() {
    const live = this.exchanges.status?.mode !== 'stored';
    const newest = this.exchanges.rows[0];
    const end = live || !newest ? Date.now() : Date.parse(newest.received_at) + BUCKET;
    this.#start = (Math.ceil(end / BUCKET) - BUCKETS) * BUCKET;
    this.#buckets = Array.from({ length: BUCKETS }, () => ({ count: 0, failed: 0, latencies: [] }));
    for (const exchange of this.exchanges.rows) {
      const index = Math.floor((Date.parse(exchange.received_at) - this.#start) / BUCKET);
      // Rows are in order of arrival, so the rest is older; a minute allows for a clock that was set.
      if (index < -6) break;
      const bucket = this.#buckets[index];
      if (!bucket) continue;
      bucket.count += 1;
      if (format.failed(exchange)) bucket.failed += 1;
      if (exchange.duration_ms !== null) bucket.latencies.push(exchange.duration_ms);
    }
  }

  #ticks() {
    const ticks = [];
    const step = 180_000;
    for (let time = Math.ceil(this.#start / step) * step; time < this.#start + BUCKETS * BUCKET - 40_000; time += step) {
      const x = this.#x(time);
      if (x < 16) continue;
      ticks.push(svg('line', { class: 'axis', x1: x, x2: x, y1: HEIGHT, y2: HEIGHT + 3 }),
        svg('text', { x, y: HEIGHT + AXIS - 1, 'text-anchor': 'middle' }, format.clock(time).slice(0, 5)));
    }
    return ticks;
  }

  /** Says the whole, or what is under the pointer. @param {number} [index] */
  #describe(index) {
    const chosen = index === undefined ? this.#buckets : this.#buckets.slice(index, index + 1);
    const from = this.#start + (index ?? 0) * BUCKET;
    const stored = this.exchanges.status?.mode === 'stored';
    const title = index !== undefined ? `${format.clock(from)} to ${format.clock(from + BUCKET)}`
      : stored ? `${MINUTES} min to ${format.clock(from + BUCKETS * BUCKET)}` : `Last ${MINUTES} min`;
    const total = chosen.reduce((sum, bucket) => sum + bucket.count, 0);
    const failed = chosen.reduce((sum, bucket) => sum + bucket.failed, 0);
    const latencies = chosen.flatMap((bucket) => bucket.latencies).sort((a, b) => a - b);
    const median = latencies.length ? `, median ${format.duration(latencies[latencies.length >> 1])}` : '';
    const summary = total === 0 ? 'no exchanges' : `${format.plural(total, 'exchange')}, ${format.count(failed)} failed${median}`;
    fill(this.#text, h('strong', {}, title), ' ', h('span', {}, summary));
    if (index === undefined) this.#chart.setAttribute('aria-label', `${title}: ${summary}`);
  }

  /** @param {number} time */
  #x(time) {
    return ((time - this.#start) / (BUCKETS * BUCKET)) * this.#width;
  }

  /** The bucket under the pointer. @param {PointerEvent} event */
  #index(event) {
    const x = event.clientX - this.#chart.getBoundingClientRect().left;
    return Math.max(0, Math.min(BUCKETS - 1, Math.floor((x / this.#width) * BUCKETS)));
  }

  /** @param {PointerEvent} event */
  #down(event) {
    this.#drag = this.#index(event);
    this.#chart.setPointerCapture(event.pointerId);
  }

  /** @param {PointerEvent} event */
  #move(event) {
    const index = this.#index(event);
    this.#describe(index);
    if (this.#drag === null || index === this.#drag) return;
    const step = this.#width / BUCKETS;
    this.#selection.setAttribute('x', String(Math.min(index, this.#drag) * step));
    this.#selection.setAttribute('width', String((Math.abs(index - this.#drag) + 1) * step));
    this.#selection.removeAttribute('hidden');
  }

  /** @param {PointerEvent} event */
  #up(event) {
    if (this.#drag === null) return;
    const [from, to] = [this.#drag, this.#index(event)].sort((a, b) => a - b);
    this.#endDrag();
    if (from === to) this.jump(this.#start + (from + 1) * BUCKET);
    else this.select(isoSeconds(this.#start + from * BUCKET), isoSeconds(this.#start + (to + 1) * BUCKET));
  }

  #endDrag() {
    this.#drag = null;
    this.#selection.setAttribute('hidden', '');
  }
}

/** @param {number[]} values */
function spread(values) {
  if (values.length < 3) return values;
  const sorted = values.toSorted((a, b) => a - b);
  return [sorted[0], sorted[sorted.length >> 1], sorted[sorted.length - 1]];
}

/** @param {number} ms */
const latencyY = (ms) => HEIGHT - 2 - Math.min(1, Math.max(0, Math.log10(Math.max(1, ms)) / LOG_TOP)) * (HEIGHT - 4);

/** As the filter takes it: UTC to the second. @param {number} time */
const isoSeconds = (time) => `${new Date(time).toISOString().slice(0, 19)}Z`;
