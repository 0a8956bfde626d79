// Loaded before peer.js to put the server part of the Socket.IO Admin UI on its server, in the namespace /admin.
"use strict";

const { instrument } = require("@socket.io/admin-ui");
const { Server } = require("socket.io");
const { Adapter } = require("socket.io-adapter");

// It watches the adapters of all namespaces, so it must come after ours is set; the constructor sets the default one.
const { adapter } = Server.prototype;
Server.prototype.adapter = function (...args) {
  const result = adapter.apply(this, args); // without an argument it is a getter
  const [choice] = args;
  // `development` is the mode that calls fetchSockets() and reads what the other servers answered.
  if (choice && choice !== Adapter) instrument(this, { auth: false, mode: "development", serverId: "admin-peer" });
  return result;
};
