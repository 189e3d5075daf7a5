// graphile-worker, tuned: 24 jobs at once, a local queue of 500, completions in batches. While
// latency is measured it fetches each job on its own, as it does by default.

import { Logger, run, runMigrations } from 'graphile-worker';
import pg from 'pg';
import { Meter, asked, beat, perSecond, produce, sleep, tell } from './drive.mjs';

const CONCURRENT = 24;
const CONNECTIONS = 16;

await tell(async (order) => {
  const pool = new pg.Pool({ connectionString: order.url, max: CONNECTIONS });
  pool.on('error', (error) => console.error(error.message));
  await runMigrations({ connectionString: order.url });
  const enqueue = (job) => pool.query("SELECT graphile_worker.add_job('noop', $1::json)", [JSON.stringify(job)]);
  if (order.task === 'enqueue') return produce(order, enqueue);

  const draining = order.task === 'drain';
  const meter = new Meter(draining ? order.jobs : order.rate * order.seconds);
  const batching = { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 };
  const settings = { connectionString: order.url, concurrentJobs: CONCURRENT, pollInterval: 1000, maxPoolSize: CONNECTIONS };
  const preset = { worker: { ...settings, logger: new Logger(() => () => {}), ...(draining ? batching : {}) } };
  const taskList = { noop: async (job) => meter.begin(job) };
  const start = () => run({ preset, pgPool: pool, taskList, noHandleSignals: true });
  if (!draining) {
    const runner = await start();
    await sleep(1500);
    await beat(order, meter.expected, enqueue);
    const figures = await meter.timed();
    await runner.stop();
    return figures;
  }

  const filling = performance.now();
  for (let n = 0; n < order.jobs; n += 1000) {
    const size = Math.min(1000, order.jobs - n);
    const specs = Array.from({ length: size }, (_, i) => ({ identifier: 'noop', payload: asked(n + i) }));
    await pool.query(
      `SELECT count(*) FROM graphile_worker.add_jobs(ARRAY(
         SELECT json_populate_record(NULL::graphile_worker.job_spec, spec) FROM json_array_elements($1::json) AS spec))`,
      [JSON.stringify(specs)],
    );
  }
  const bulk_per_second = perSecond(order.jobs, filling);
  await pool.query('VACUUM ANALYZE');
  const began = performance.now();
  const runner = await start();
  // A job that is done is deleted.
  const left = 'SELECT EXISTS (SELECT FROM graphile_worker._private_jobs) AS left';
  const unfinished = async () => (await pool.query(left)).rows[0].left;
  const figures = await meter.drained(began, order.limit_seconds, unfinished);
  await runner.stop();
  return { bulk_per_second, ...figures };
});
