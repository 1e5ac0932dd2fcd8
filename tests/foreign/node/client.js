// A client of a bus in another language, written from docs/protocol.md alone: Node, with a msgpack
// package and ZMTP 3.1 (https://rfc.zeromq.org/spec/37) over the bus's ipc socket.
//
//     node client.js '{"endpoint": "ipc://…", "run": "<hex>", "token": "…", "questions": […]}'
//
// Joins, defines each task, asks, prints one JSON line for each answer, and leaves.
"use strict";
const crypto = require("crypto");
const net = require("net");
const { encode, decode } = require("@msgpack/msgpack");

const HELLO = 1, WELCOME = 2, DEFINE = 3, ENCODE = 6, TEXT = 8, RESULT = 9;
const NACK = 10, CREDIT = 11, PING = 12, PONG = 13, GOODBYE = 16;

function crc32(...parts) {
  let crc = 0xffffffff;
  for (const part of parts) {
    for (const byte of part) {
      crc ^= byte;
      for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
    }
  }
  return (crc ^ 0xffffffff) >>> 0;
}

// -- ZMTP: a DEALER without security ------------------------------------------------------------

function frame(body, flags) {
  if (body.length < 256) return Buffer.concat([Buffer.from([flags, body.length]), body]);
  const head = Buffer.alloc(9);
  head[0] = flags | 2;
  head.writeBigUInt64BE(BigInt(body.length), 1);
  return Buffer.concat([head, body]);
}

class Dealer {
  constructor(endpoint, onMessage) {
    this.buffer = Buffer.alloc(0);
    this.parts = [];
    this.greeted = false;
    this.onMessage = onMessage;
    this.socket = net.connect(endpoint.replace("ipc://", ""));
    this.ready = new Promise((resolve, reject) => {
      this.isReady = resolve;
      this.socket.on("error", reject);
    });
    this.socket.on("data", (data) => this.read(data));
    const greeting = Buffer.alloc(64);
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[11] = 1;
    greeting.write("NULL", 12);
    this.socket.write(greeting);
  }

  read(data) {
    this.buffer = Buffer.concat([this.buffer, data]);
    if (!this.greeted) {
      if (this.buffer.length < 64) return;
      this.buffer = this.buffer.subarray(64);
      this.greeted = true;
      const type = Buffer.from("\x05READY\x0bSocket-Type\0\0\0\x06DEALER", "latin1");
      this.socket.write(frame(type, 4));
    }
    for (;;) {
      if (this.buffer.length < 2) return;
      const flags = this.buffer[0];
      const long = flags & 2;
      if (long && this.buffer.length < 9) return;
      const size = long ? Number(this.buffer.readBigUInt64BE(1)) : this.buffer[1];
      const start = long ? 9 : 2;
      if (this.buffer.length < start + size) return;
      const body = this.buffer.subarray(start, start + size);
      this.buffer = this.buffer.subarray(start + size);
      if (flags & 4) {
        if (body[0] === 5 && body.toString("latin1", 1, 6) === "READY") this.isReady();
        continue;
      }
      this.parts.push(body);
      if (!(flags & 1)) {
        const parts = this.parts;
        this.parts = [];
        this.onMessage(parts);
      }
    }
  }

  send(frames) {
    frames.forEach((body, i) => this.socket.write(frame(body, i < frames.length - 1 ? 1 : 0)));
  }
}

// -- the protocol -------------------------------------------------------------------------------

function sorted(value) {
  if (Array.isArray(value) || value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
}

function taskId(task) {
  const d = task.decoding;
  const named = {
    ...task,
    relay: [task.relay.template, task.relay.max_new_tokens],
    decoding: [d.temperature, d.top_p, d.seed, d.stop, d.stream],
  };
  return crypto.createHash("sha256").update(JSON.stringify(sorted(named))).digest("hex");
}

class Client {
  constructor(given, name) {
    this.given = given;
    this.name = name;
    this.number = 0;
    this.due = 0;
    this.inbox = [];
    this.waiting = null;
    this.credit = {};
    this.dealer = new Dealer(given.endpoint, (frames) => this.receive(frames));
  }

  send(type, fields, rows = [], body = Buffer.alloc(0)) {
    const packed = Buffer.from(encode(rows));
    const header = {
      v: 2, t: type, r: Buffer.from(this.given.run, "hex"), s: this.number++, e: 1,
      n: rows.length, c: crc32(packed, body), ...fields,
    };
    this.dealer.send([Buffer.from(encode(header)), packed, body]);
  }

  receive([first, second, body]) {
    const header = decode(first);
    if (header.s !== this.due++) throw new Error(`message ${header.s} came, ${this.due - 1} was due`);
    if (header.c !== crc32(second, body)) throw new Error("checksum");
    if (header.t === PING) this.send(PONG, { busy_ms: 0 });
    else if (header.t === CREDIT) {
      const left = (this.credit[header.wire] ??= { messages: 0, bytes: 0 });
      left.messages += header.messages;
      left.bytes += Number(header.bytes);
    }
    this.inbox.push([header, decode(second), body]);
    this.waiting?.();
  }

  async next() {
    while (!this.inbox.length) await new Promise((resolve) => (this.waiting = resolve));
    return this.inbox.shift();
  }

  async join() {
    await this.dealer.ready;
    this.send(HELLO, { name: this.name, role: "client", token: this.given.token, versions: [2] });
    const [header] = await this.next();
    if (header.t !== WELCOME) throw new Error(`turned away: ${header.code}: ${header.reason}`);
    this.pings = setInterval(() => this.send(PING, { busy_ms: 0 }), header.ping_ms);
  }

  async ask({ wire, task, texts, channel }) {
    this.send(DEFINE, {}, [], Buffer.from(encode(task)));
    const bodies = texts.map((text) => Buffer.from(text));
    const ids = texts.map(() => crypto.randomBytes(16));
    const rows = bodies.map((body, i) => [ids[i], 60000, Buffer.alloc(16), body.length]);
    const body = Buffer.concat(bodies);
    while (!(this.credit[wire]?.messages > 0 && this.credit[wire].bytes > 0)) await this.next();
    this.credit[wire].messages -= 1;
    this.credit[wire].bytes -= body.length;
    const about = { wire, task: taskId(task), origin: "", reason: "", solo: false };
    if (wire.startsWith("@")) this.send(TEXT, { ...about, stages: {} }, rows, body);
    else this.send(ENCODE, { ...about, channel, fallback: "text", mode: "forward" }, rows, body);
    const answers = {};
    while (Object.keys(answers).length < ids.length) {
      const [header, found, content] = await this.next();
      let start = 0;
      found.forEach((row, i) => {
        const id = Buffer.from(row[0]).toString("hex");
        const { channel, reason, labels } = header;
        if (header.t === NACK) answers[id] = { code: header.code, reason };
        if (header.t !== RESULT) return;
        if (!labels) {
          answers[id] = { channel, reason, text: content.toString("utf8", start, (start += row[3])) };
          return;
        }
        const at = (label) => content.readFloatLE(4 * (i * labels + label));
        answers[id] = { channel, reason, scores: Array.from({ length: labels }, (_, n) => at(n)) };
      });
    }
    return ids.map((id) => answers[id.toString("hex")]);
  }

  leave() {
    clearInterval(this.pings);
    this.send(GOODBYE, { reason: "done" });
    this.dealer.socket.end();
  }
}

async function main() {
  const given = JSON.parse(process.argv[2]);
  const client = new Client(given, given.name ?? "foreign-node");
  await client.join();
  for (const question of given.questions) {
    for (const answer of await client.ask(question)) console.log(JSON.stringify(answer));
  }
  client.leave();
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
