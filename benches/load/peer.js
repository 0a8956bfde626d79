// The published Node.js packages under load: one server or one emitter, driven as the Python workers are.
"use strict";

const fs = require("node:fs");
const http = require("node:http");
const { createAdapter } = require("@socket.io/postgres-adapter");
const { Emitter } = require("@socket.io/postgres-emitter");
const { Pool } = require("pg");
const { Server } = require("socket.io");

const nowUs = () => Number(process.hrtime.bigint() / 1000n);
const event = (number, size = 60) => ({ number, sent: nowUs(), user: "ada", text: "x".repeat(size) });
const turn = () => new Promise(setImmediate);

/** A pool that knows what is on its way: the packages give no way to wait for a commit. */
function openPool(database) {
  const pool = new Pool(database);
  const query = pool.query.bind(pool);
  let running = 0;
  pool.query = (...args) => {
    running++;
    const result = query(...args);
    const done = () => void running--;
    result.then(done, done);
    return result;
  };
  pool.settled = async () => {
    do await turn();
    while (running > 0);
  };
  return pool;
}

async function createTable(pool) {
  try {
    await pool.query(
      "CREATE TABLE IF NOT EXISTS socket_io_attachments " +
        "(id bigserial UNIQUE, created_at timestamptz DEFAULT NOW(), payload bytea)",
    );
  } catch (error) {
    if (!["23505", "42P07"].includes(error.code)) throw error; // two servers at once
  }
}

let io, pool, emitter;

const commands = {
  async serve({ address }) {
    pool = openPool(address);
    await createTable(pool);
    const server = http.createServer();
    io = new Server(server, { perMessageDeflate: false });
    io.adapter(createAdapter(pool));
    io.on("connection", (socket) => void socket.join(socket.handshake.auth.rooms ?? []));
    await new Promise((resolve) => server.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, resolve));
    return server.address().port;
  },

  /** `emit` of Node.js cannot be awaited: a hundred in a turn of the event loop, then the next. */
  async burst({ room, count, size, first = 0, binary }) {
    const packed = binary ? require("node:crypto").randomBytes(size) : null;
    const began = nowUs();
    for (let number = first; number < first + count; number++) {
      if (packed) io.to(room).emit("chat", number, packed);
      else io.to(room).emit("chat", event(number, size));
      if (number % 100 === 99) await turn();
    }
    return { began, ended: nowUs() };
  },

  async pace({ room, count, rate }) {
    const began = nowUs();
    for (let number = 0; number < count; number++) {
      const due = began + (number * 1e6) / rate;
      const left = (due - nowUs()) / 1000;
      if (left > 0) await new Promise((resolve) => setTimeout(resolve, left));
      io.to(room).emit("chat", event(number));
    }
    return { began, ended: nowUs() };
  },

  flush: () => pool.settled(),

  enter_rooms({ count }) {
    const socket = io.of("/").sockets.values().next().value;
    for (let number = 0; number < count; number++) socket.join(`room ${number}`);
    return null;
  },

  async open({ address }) {
    pool = openPool(address);
    await createTable(pool);
    emitter = new Emitter(pool);
    return null;
  },

  async emit({ room, count }) {
    const began = nowUs();
    const cpu = process.cpuUsage();
    for (let number = 0; number < count; number++) emitter.to(room).emit("chat", event(number));
    await pool.settled();
    const used = process.cpuUsage(cpu);
    return { seconds: (nowUs() - began) / 1e6, cpu_s: (used.user + used.system) / 1e6 };
  },

  usage() {
    const used = process.cpuUsage();
    const pages = Number(fs.readFileSync("/proc/self/statm", "utf8").split(" ")[1]);
    return { cpu_s: (used.user + used.system) / 1e6, rss_bytes: pages * 4096 };
  },
};

async function answer(line) {
  const { id, command, arguments: given } = JSON.parse(line);
  let said;
  try {
    said = { id, ok: (await commands[command](given)) ?? null };
  } catch (error) {
    said = { id, error: String(error.stack) };
  }
  process.stdout.write(JSON.stringify(said) + "\n");
}

let partial = "";
process.stdin.setEncoding("utf8");
process.stdin.on("data", async (chunk) => {
  const lines = (partial + chunk).split("\n");
  partial = lines.pop();
  for (const line of lines) await answer(line);
});
process.stdin.on("end", () => process.exit(0));
