// One peer made of the published Node.js packages, driven over stdin and stdout by tests/fixtures/node.py.
//
//   request   {"id": 1, "cmd": "server.emit", ...}           one JSON document per line
//   answer    {"id": 1, "ok": value} or {"id": 1, "error": {"message": …, …}}
//   happening {"event": "client.event", ...}                 in the order in which it happened
//
// Binary is {"$bin": "base64"} in both directions. A peer hosts at most one server and one emitter, and any number
// of clients that are named by the tests. It ends when its stdin ends, so no test run leaves one behind.
"use strict";

// The adapter's requests wait five seconds for answers, and for events between servers nothing else can be chosen. No
// slow machine shall end them first.
const startTimer = global.setTimeout;
global.setTimeout = (run, delay, ...args) => startTimer(run, delay === 5000 ? 40_000 : delay, ...args);

const http = require("node:http");
const { createAdapter } = require("@socket.io/postgres-adapter");
const { Emitter } = require("@socket.io/postgres-emitter");
const { Client, Pool } = require("pg");
const { Server } = require("socket.io");
const { io: connect } = require("socket.io-client");

// --- lines ----------------------------------------------------------------------------------------------------

/** Replace what JSON cannot carry. Buffers are caught before JSON.stringify calls their toJSON. */
function wrap(value) {
  if (value instanceof ArrayBuffer) return wrap(Buffer.from(value));
  if (ArrayBuffer.isView(value)) {
    return { $bin: Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString("base64") };
  }
  if (Array.isArray(value)) return value.map(wrap);
  if (value instanceof Error) return { message: value.message, ...wrap({ ...value }) };
  if (value && typeof value === "object" && !(value instanceof Date)) {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, wrap(item)]));
  }
  return value;
}

function unwrap(value) {
  if (Array.isArray(value)) return value.map(unwrap);
  if (value && typeof value === "object") {
    if (typeof value.$bin === "string") return Buffer.from(value.$bin, "base64");
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, unwrap(item)]));
  }
  return value;
}

const say = (line) => process.stdout.write(JSON.stringify(wrap(line)) + "\n");

const rooms = (value) => (value === undefined ? [] : [].concat(value));

/** Split a trailing acknowledgement function off the arguments of an event. */
function split(args) {
  return typeof args.at(-1) === "function" ? [args.slice(0, -1), args.at(-1)] : [args, undefined];
}

/**
 * Acknowledge as the tests configured it: `replies` maps an event's name to the arguments of the acknowledgement,
 * null stays silent, and without an entry the event's own arguments go back.
 */
function reply(replies, name, args, ack) {
  const configured = replies[name];
  if (ack && configured !== null) ack(...(configured ?? args));
}

// --- PostgreSQL -----------------------------------------------------------------------------------------------

/** A pool that knows what is still on its way to PostgreSQL: the packages themselves give no way to wait for it. */
function openPool(database, source) {
  const pool = new Pool(database);
  const query = pool.query.bind(pool);
  const running = new Set();
  pool.query = (...args) => {
    const result = query(...args);
    const done = result.then(
      () => running.delete(done),
      () => running.delete(done),
    );
    running.add(done);
    return result;
  };
  // One query may cause the next: an attachment is inserted first and announced second.
  pool.settled = async () => {
    do {
      await Promise.all(running);
      await new Promise(setImmediate);
    } while (running.size > 0);
  };
  pool.on("error", (error) => say({ event: `${source}.error`, error }));
  return pool;
}

/** The adapter expects its table to exist. IF NOT EXISTS still fails when two sessions create it at once. */
async function createTable(pool, table) {
  try {
    await pool.query(
      `CREATE TABLE IF NOT EXISTS ${table} (id bigserial UNIQUE, created_at timestamptz DEFAULT NOW(), payload bytea)`,
    );
  } catch (error) {
    if (!["23505", "42P07"].includes(error.code)) throw error;
  }
}

// --- What servers and emitters have in common -----------------------------------------------------------------

/** Narrow a server's namespace or an emitter down to the sockets and flags that a request names. */
function select(base, { to, except, flags = {} }) {
  let target = base;
  for (const room of rooms(to)) target = target.to(room);
  for (const room of rooms(except)) target = target.except(room);
  if (flags.volatile) target = target.volatile;
  if (flags.local) target = target.local;
  if (flags.compress !== undefined) target = target.compress(flags.compress);
  if (flags.timeout !== undefined) target = target.timeout(flags.timeout);
  return target;
}

/** The commands that read the same for both; `base` finds the namespace. */
const sending = (base) => ({
  emit: (m) => void select(base(m), m).emit(m.name, ...(m.args ?? [])),
  // All in one turn of the event loop, which is what makes it a burst.
  emitAll: ({ messages }) => {
    for (const m of messages) select(base(m), m).emit(m.name, ...(m.args ?? []));
  },
  socketsJoin: (m) => void select(base(m), m).socketsJoin(m.rooms),
  socketsLeave: (m) => void select(base(m), m).socketsLeave(m.rooms),
  disconnectSockets: (m) => void select(base(m), m).disconnectSockets(m.close ?? false),
  serverSideEmit: (m) => void base(m).serverSideEmit(m.name, ...(m.args ?? [])),
});

// --- Server ---------------------------------------------------------------------------------------------------

let server;

const namespaceOf = ({ namespace = "/" }) => server.io.of(namespace);

const serverCommands = {
  ...sending(namespaceOf),

  /** database: settings of pg.Pool; adapter: options of createAdapter. Clients join the rooms their auth names. */
  async start({ database, adapter = {}, namespaces = ["/"], serverSideEvents = [], replies = {}, table = true }) {
    const pool = openPool(database, "server");
    if (table) await createTable(pool, adapter.tableName ?? "socket_io_attachments");
    const httpServer = http.createServer();
    const io = new Server(httpServer);
    const errorHandler = (error) => say({ event: "server.error", error });
    io.adapter(createAdapter(pool, { ...adapter, errorHandler }));
    server = { io, pool };
    for (const namespace of namespaces) {
      io.of(namespace).on("connection", (socket) => {
        const { id: sid } = socket;
        if (socket.handshake.auth.rooms) socket.join(socket.handshake.auth.rooms);
        say({ event: "server.connection", namespace, sid, auth: socket.handshake.auth });
        socket.on("disconnect", (reason) => say({ event: "server.disconnect", namespace, sid, reason }));
        socket.onAny((name, ...all) => {
          const [args, ack] = split(all);
          say({ event: "server.event", namespace, sid, name, args });
          reply(replies, name, args, ack);
        });
      });
      for (const name of serverSideEvents) {
        io.of(namespace).on(name, (...all) => {
          const [args, ack] = split(all);
          say({ event: "server.serverSideEvent", namespace, name, args });
          reply(replies, name, args, ack);
        });
      }
    }
    await new Promise((resolve, reject) => httpServer.once("error", reject).listen(0, "127.0.0.1", resolve));
    return { port: httpServer.address().port };
  },

  /** The responses; a timeout is an error that carries the ones that did arrive. */
  emitWithAck: (m) => select(namespaceOf(m), m).emitWithAck(m.name, ...(m.args ?? [])),

  async fetchSockets(m) {
    const sockets = await select(namespaceOf(m), m).fetchSockets();
    return sockets.map(({ id, rooms, data, handshake }) => ({ id, rooms: [...rooms], data, handshake }));
  },

  serverSideEmitWithAck: (m) => namespaceOf(m).serverSideEmitWithAck(m.name, ...(m.args ?? [])),

  /** How many servers this one knows of in a namespace, itself included. */
  serverCount: (m) => namespaceOf(m).adapter.serverCount(),

  /** Sockets of this very server. */
  sockets: (m) => [...namespaceOf(m).sockets.values()].map((s) => ({ id: s.id, rooms: [...s.rooms], data: s.data })),

  join: (m) => namespaceOf(m).sockets.get(m.sid).join(m.rooms),
  leave: (m) => rooms(m.rooms).forEach((room) => namespaceOf(m).sockets.get(m.sid).leave(room)),
  setData: (m) => void Object.assign(namespaceOf(m).sockets.get(m.sid).data, m.data),

  /** Returns when everything emitted so far is committed. */
  flush: () => server.pool.settled(),

  async close() {
    const { io, pool } = server;
    await io.close();
    await pool.settled();
    await pool.end();
  },
};

// --- Emitter --------------------------------------------------------------------------------------------------

let emitter;

const emitterCommands = {
  // Emitter.of() forgets the options it was made with, so each namespace gets its own.
  ...sending(({ namespace = "/" }) => new Emitter(emitter.pool, namespace, emitter.options)),
  async open({ database, options = {} }) {
    const pool = openPool(database, "emitter");
    await createTable(pool, options.tableName ?? "socket_io_attachments");
    emitter = { pool, options };
  },
  flush: () => emitter.pool.settled(),
  async close() {
    await emitter.pool.settled();
    await emitter.pool.end();
  },
};

// --- Plain SQL ------------------------------------------------------------------------------------------------

const sqlCommands = {
  /** The calls of one transaction, as any program with the `pg` package makes them. */
  async transaction({ database, calls, rollBack }) {
    const client = new Client(database);
    await client.connect();
    try {
      await client.query("BEGIN");
      for (const [sql, values] of calls) await client.query(sql, values);
      await client.query(rollBack ? "ROLLBACK" : "COMMIT");
    } finally {
      await client.end();
    }
  },
};

// --- Clients --------------------------------------------------------------------------------------------------

const clients = new Map();

const clientCommands = {
  /** Returns when connected. `shares` names a client whose connection this one uses for another namespace. */
  async connect({ client, url, namespace = "/", auth, query, transports = ["websocket"], replies = {}, shares }) {
    const options = { auth, query, transports, forceNew: true, reconnection: false };
    const socket = shares ? clients.get(shares).io.socket(namespace, { auth }) : connect(url + namespace, options);
    clients.set(client, socket);
    socket.onAny((name, ...all) => {
      const [args, ack] = split(all);
      say({ event: "client.event", client, name, args });
      reply(replies, name, args, ack);
    });
    socket.on("disconnect", (reason) => say({ event: "client.disconnect", client, reason }));
    return new Promise((resolve, reject) => {
      socket.once("connect_error", reject);
      socket.once("connect", () => resolve({ sid: socket.id }));
    });
  },
  emit: (m) => void clients.get(m.client).emit(m.name, ...(m.args ?? [])),
  emitWithAck: (m) => clients.get(m.client).timeout(m.timeout).emitWithAck(m.name, ...(m.args ?? [])),
  disconnect: (m) => void clients.get(m.client).disconnect(),
};

// --- Dispatch -------------------------------------------------------------------------------------------------

const roles = { server: serverCommands, emitter: emitterCommands, client: clientCommands, sql: sqlCommands };

async function answer(line) {
  const { id, cmd, ...request } = JSON.parse(line);
  try {
    const [role, command] = cmd.split(".");
    const run = roles[role]?.[command];
    if (!run) throw new Error(`unknown command ${cmd}`);
    say({ id, ok: (await run(unwrap(request))) ?? null });
  } catch (error) {
    say({ id, error });
  }
}

// The adapter does not await what it publishes: a failing attachment surfaces here and must not end the peer.
process.on("unhandledRejection", (error) => say({ event: "peer.error", error }));

// Not node:readline, which also splits at U+2028.
let partial = "";
process.stdin.setEncoding("utf8");
process.stdin.on("data", (chunk) => {
  const lines = (partial + chunk).split("\n");
  partial = lines.pop();
  lines.forEach(answer);
});
process.stdin.on("end", () => process.exit(0));
say({ event: "peer.ready", node: process.version });
