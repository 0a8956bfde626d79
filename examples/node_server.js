// The Node.js half of a mixed cluster: the same chat as asgi_app.py, so that clients of either server meet in the rooms.
//
// npm install socket.io @socket.io/postgres-adapter pg
// export DATABASE_URL=postgresql://app@localhost/app
// PORT=3000 node examples/node_server.js &
// uvicorn examples.asgi_app:app --ws websockets-sansio --port 8000

const { createServer } = require("node:http");
const { createAdapter } = require("@socket.io/postgres-adapter");
const { Pool } = require("pg");
const { Server } = require("socket.io");

const pool = new Pool({ connectionString: process.env.DATABASE_URL });

async function main() {
  // Whichever server starts first creates the table. Python's servers create the same one.
  await pool.query(`
    CREATE TABLE IF NOT EXISTS socket_io_attachments (
      id bigserial UNIQUE, created_at timestamptz DEFAULT now(), payload bytea
    )`);
  const server = createServer((request, response) => response.end());
  const io = new Server(server);
  // A notification of exactly 8000 bytes is refused by PostgreSQL: one byte less than the adapter's default.
  io.adapter(createAdapter(pool, { payloadThreshold: 7999 }));

  io.on("connection", (socket) => {
    socket.join(socket.handshake.auth.room ?? "lobby");

    socket.on("chat", (room, text) => {
      // To all clients in the room, on all servers, except the sender.
      socket.to(room).emit("chat", text);
    });

    socket.on("who", async (room, answer) => {
      // A request to all servers, Python and Node.js.
      answer((await io.in(room).fetchSockets()).map(({ id }) => id));
    });
  });

  // Servers of Python ask for it when a client asks for the processes of the cluster.
  io.on("pid", (answer) => answer(process.pid));
  server.listen(process.env.PORT ?? 3000);
}

main();
