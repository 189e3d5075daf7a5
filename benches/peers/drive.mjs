// What the Node drivers share: the order from standard input, the meter, and the telling.
// The protocol is that of src/main.rs.

import { createInterface } from 'node:readline';

const now = () => performance.timeOrigin + performance.now();

export const sleep = (ms) => new Promise((woken) => setTimeout(woken, ms));

/** The payload of every job: its number and when it was asked for. */
export const asked = (number) => ({ number, millis: now() });

export async function readOrder() {
  for await (const line of createInterface({ input: process.stdin })) return JSON.parse(line);
  throw new Error('no order came');
}

/** Counts jobs as they start, and tells when the last of `expected` has. */
export class Meter {
  latencies = [];
  constructor(expected) {
    this.expected = expected;
    this.all = new Promise((done) => (this.done = done));
  }
  begin(job) {
    this.latencies.push(now() - job.millis);
    if (this.latencies.length === this.expected) this.done(true);
  }
  /** A drain begun at `start`, until all have begun and `unfinished` finds none not written as done. */
  async drained(start, limitSeconds, unfinished) {
    const rest = limitSeconds * 1000 - (performance.now() - start);
    if (!(await Promise.race([this.all, sleep(rest)]))) {
      const begun = this.latencies.length;
      return { drain_per_second: perSecond(begun, start), cut_off_after: begun };
    }
    while (await unfinished()) await sleep(2);
    return { drain_per_second: perSecond(this.expected, start) };
  }
  async timed() {
    await Promise.race([this.all, sleep(30_000)]);
    return { latencies_ms: this.latencies };
  }
}

export const perSecond = (jobs, start) => (jobs / (performance.now() - start)) * 1000;

/** `producers` callers at once, each enqueueing its share one by one. */
export async function produce({ jobs, producers }, enqueue) {
  const start = performance.now();
  const share = Math.floor(jobs / producers);
  await Promise.all(
    Array.from({ length: producers }, async () => {
      for (let n = 0; n < share; n++) await enqueue(asked(n));
    }),
  );
  return { single_per_second: perSecond(jobs, start) };
}

/** `expected` jobs at `rate` a second, not waiting for one another. */
export async function beat({ rate }, expected, enqueue) {
  const start = performance.now();
  for (let n = 0; n < expected; ) {
    for (; n < expected && performance.now() - start >= (n * 1000) / rate; n++) {
      enqueue(asked(n)).catch((error) => console.error(error.message));
    }
    await sleep(1);
  }
}

export async function tell(measure) {
  const order = await readOrder();
  console.log(JSON.stringify(await measure(order)));
  process.exit(0);
}
