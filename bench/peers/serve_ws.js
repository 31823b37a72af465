// `ws` on Node, bare: parse and ack.
//
//   node serve_ws.js FOLDER      FOLDER/node_modules holds ws
"use strict";

const path = require("path");
const { WebSocketServer } = require(path.resolve(process.argv[2], "node_modules", "ws"));

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, backlog: 4096, perMessageDeflate: false });
const data = { reconcileContent: false, nextHeartbeatIn: 15000, commands: [] };

server.on("connection", (socket) => {
  socket.on("message", (text) => {
    const { id } = JSON.parse(text);
    const timestamp = new Date().toISOString();
    socket.send(JSON.stringify({ event: "ack", id, data: { success: true, data, timestamp } }));
  });
});
server.on("listening", () => console.log("listening", server.address().port));
process.stdin.resume().on("end", () => process.exit(0));
