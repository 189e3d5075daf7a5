// pg-boss: two workers with batches of 1,000, a poll every 0.5 s (its shortest); tuned, they fetch
// on while batches are full. While latency is measured: LISTEN/NOTIFY and batches of 50.

import pg from 'pg';
import { PgBoss } from 'pg-boss';
import { Meter, asked, beat, perSecond, produce, sleep, tell } from './drive.mjs';

const CONNECTIONS = 16;

await tell(async (order) => {
  const draining = order.task === 'drain';
  const listens = order.task === 'latency';
  const boss = new PgBoss({ connectionString: order.url, max: CONNECTIONS, useListenNotify: listens });
  boss.on('error', (error) => console.error(error.message));
  await boss.start();
  await boss.createQueue('noop', listens ? { notify: true } : {});
  const enqueue = (job) => boss.send('noop', job);
  if (order.task === 'enqueue') return produce(order, enqueue);

  const meter = new Meter(draining ? order.jobs : order.rate * order.seconds);
  const work = async (workers, batchSize) => {
    const options = { batchSize, pollingIntervalSeconds: 0.5, burstWhenBatchFull: order.system === 'pg-boss tuned' };
    for (let n = 0; n < workers; n++) {
      await boss.work('noop', options, async (jobs) => jobs.forEach((job) => meter.begin(job.data)));
    }
  };
  if (listens) {
    await work(1, 50);
    await sleep(1500);
    await beat(order, meter.expected, enqueue);
    return meter.timed();
  }

  const filling = performance.now();
  for (let n = 0; n < order.jobs; n += 1000) {
    const size = Math.min(1000, order.jobs - n);
    await boss.insert('noop', Array.from({ length: size }, (_, i) => ({ data: asked(n + i) })));
  }
  const bulk_per_second = perSecond(order.jobs, filling);
  const client = new pg.Client({ connectionString: order.url });
  await client.connect();
  await client.query('VACUUM ANALYZE');
  const began = performance.now();
  await work(2, 1000);
  const left = "SELECT EXISTS (SELECT FROM pgboss.job WHERE state <> 'completed' AND name = 'noop') AS left";
  const unfinished = async () => (await client.query(left)).rows[0].left;
  return { bulk_per_second, ...(await meter.drained(began, order.limit_seconds, unfinished)) };
});
