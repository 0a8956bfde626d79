// Loaded before peer.js in every worker of cluster.js: the same peer, with the adapter that belongs behind a primary.
"use strict";

const net = require("node:net");
const { createAdapter } = require("@socket.io/cluster-adapter");

// peer.js hands over a pool, which only the primary uses; the heartbeat options are the same.
const id = require.resolve("@socket.io/postgres-adapter");
require.cache[id] = { id, filename: id, loaded: true, exports: { createAdapter: (pool, options) => createAdapter(options) } };

// Workers share a port when they ask for any; the tests want to choose the worker of each client.
const { listen } = net.Server.prototype;
net.Server.prototype.listen = function (port, host, done) {
  return listen.call(this, { port, host, exclusive: true }, done);
};
