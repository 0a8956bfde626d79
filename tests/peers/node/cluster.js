// A Node.js cluster as the README of @socket.io/postgres-adapter describes it: the primary alone talks to PostgreSQL,
// its workers talk to the primary. Driven by tests/fixtures/node_cluster.py in the lines of peer.js:
//
//   request   {"id": 1, "cmd": "cluster.start", ...}            to the primary
//             {"id": 2, "cmd": "server.emit", "worker": 1, ...} to a worker, which is a peer.js
//   answer    {"id": 2, "worker": 1, "ok": value}
//   happening {"event": "server.event", "worker": 1, ...}
//
// Requests share one numbering. It ends when its stdin ends, and its workers with it.
"use strict";

const cluster = require("node:cluster");
const path = require("node:path");

// setupPrimary of 0.5.0 was compiled to read `require("cluster").default`, which Node.js does not have: as published it
// throws "Cannot read properties of undefined (reading 'isPrimary')" for everybody.
cluster.default = cluster;

const { setupPrimary } = require("@socket.io/postgres-adapter");
const { Pool } = require("pg");

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

/** Call `take` for every line. Not node:readline, which also splits at U+2028. */
function lines(stream, take) {
  let partial = "";
  stream.setEncoding("utf8");
  stream.on("data", (chunk) => {
    const whole = (partial + chunk).split("\n");
    partial = whole.pop();
    whole.forEach(take);
  });
}

const workers = new Map();
let primary;

const commands = {
  /** database: settings of pg.Pool; adapter: options of setupPrimary; workers: how many. Returns when all are ready. */
  async start({ database, adapter = {}, workers: count = 2 }) {
    const pool = new Pool(database);
    const errorHandler = ({ message }) => say({ event: "cluster.error", error: { message } });
    pool.on("error", errorHandler);
    await pool.query(
      `CREATE TABLE IF NOT EXISTS ${adapter.tableName ?? "socket_io_attachments"}
       (id bigserial UNIQUE, created_at timestamptz DEFAULT NOW(), payload bytea)`,
    );
    primary = { pool, adapter: setupPrimary(pool, { ...adapter, errorHandler }) };
    // `silent` hands the workers' stdin and stdout to us; messages of the adapter have a channel of their own.
    const execArgv = ["--require", path.join(__dirname, "worker.js")];
    cluster.setupPrimary({ exec: path.join(__dirname, "peer.js"), execArgv, silent: true });
    const ready = [];
    for (let number = 1; number <= count; number++) {
      const worker = cluster.fork();
      workers.set(number, worker);
      worker.process.stderr.pipe(process.stderr);
      worker.on("exit", () => say({ event: "cluster.workerExit", number }));
      ready.push(
        new Promise((resolve, reject) => {
          worker.once("exit", () => reject(new Error(`worker ${number} ended, see its error output`)));
          lines(worker.process.stdout, (line) => {
            const item = JSON.parse(line);
            if (item.event === "peer.ready") resolve();
            else say({ ...item, worker: number });
          });
        }),
      );
    }
    await Promise.all(ready);
  },

  async close() {
    for (const worker of workers.values()) worker.process.stdin.end();
    primary.adapter.close();
    await primary.pool.end();
  },
};

async function answer(line) {
  const { worker, ...request } = JSON.parse(line);
  if (worker !== undefined) {
    workers.get(worker).process.stdin.write(JSON.stringify(request) + "\n");
    return;
  }
  const { id, cmd } = request;
  try {
    const run = commands[cmd.replace(/^cluster\./, "")];
    if (!run) throw new Error(`unknown command ${cmd}`);
    say({ id, ok: (await run(request)) ?? null });
  } catch ({ message }) {
    say({ id, error: { message } });
  }
}

process.on("unhandledRejection", ({ message }) => say({ event: "peer.error", error: { message } }));

lines(process.stdin, answer);
process.stdin.on("end", () => {
  for (const worker of workers.values()) worker.process.stdin.end();
  process.exit(0);
});
say({ event: "peer.ready", node: process.version });
