// Players and dashboards on the real socket.io-client, told what to do and telling what they see, in lines of JSON.
//
//   node players.js FOLDER [PACKAGE]      FOLDER/node_modules holds PACKAGE, which is socket.io-client
//
// in:   {"open": NAME, "url": URL, "options": {...}, "acks": true}   a new client; `options` are those of io()
//       {"emit": NAME, "event": EVENT, "data": ..., "ack": true}     with `ack` its answer is told
//       {"leave": NAME}                                              socket.disconnect()
//       {"cut": NAME}                                                its TCP connection is gone: a fault of the network
// out:  {"who": NAME, "what": "connect" | "event" | "ack" | "connect_error" | "disconnect" | "attempt", ...}
"use strict";

const path = require("path");
const readline = require("readline");
const { io } = require(path.resolve(process.argv[2], "node_modules", process.argv[3] ?? "socket.io-client"));

const sockets = new Map();

function tell(who, what, more) {
  process.stdout.write(JSON.stringify({ who, what, ...more }) + "\n");
}

function open(who, url, options, acks) {
  const socket = io(url, { forceNew: true, ...options });
  sockets.set(who, socket);
  socket.on("connect", () => tell(who, "connect", { id: socket.id }));
  socket.on("connect_error", (error) =>
    tell(who, "connect_error", { message: error.message, data: error.data, active: socket.active }));
  socket.on("disconnect", (reason) => tell(who, "disconnect", { reason, active: socket.active }));
  socket.io.on("reconnect_attempt", (number) => tell(who, "attempt", { number }));
  socket.onAny((event, data, callback) => {
    tell(who, "event", { event, data, wanted: typeof callback === "function" });
    if (event === "token:refresh") {
      socket.auth.token = data.token;  // as shipped players do: for the next time that they connect
    }
    if (acks && typeof callback === "function") {
      callback({ ok: true });
    }
  });
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const order = JSON.parse(line);
  if (order.open) {
    open(order.open, order.url, order.options, order.acks);
  } else if (order.emit) {
    const args = order.data === undefined ? [] : [order.data];
    if (order.ack) {
      args.push((body) => tell(order.emit, "ack", { event: order.event, data: body }));
    }
    sockets.get(order.emit).emit(order.event, ...args);
  } else if (order.leave) {
    sockets.get(order.leave).disconnect();
  } else if (order.cut) {
    sockets.get(order.cut).io.engine.transport.ws.terminate();
  }
}).on("close", () => process.exit(0));
