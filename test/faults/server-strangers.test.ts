import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { appendFile, mkdir, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:net";
import { join, relative } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { encodeMessage } from "../../src/runtime/wire/frames.js";
import type { ServerView } from "../../src/servers/server.js";
import { eventually } from "../fixtures/eventually.js";
import {
  errorOf,
  expectConsistent,
  type FaultFleet,
  faultFleet,
  lateServers,
  openFolder,
} from "../fixtures/fleets/fault-fleet.js";
import { killed } from "../fixtures/processes.js";
import { MessageReader } from "../fixtures/sessions/message-reader.js";

interface Stranger {
  port: number;
  /** How many connections the program accepted, and how many bytes came over them. */
  connections: number;
  bytes: number;
}

/** Starts a program outside the fleet that listens on a port and counts connections and bytes. */
async function stranger(port: number): Promise<Stranger> {
  const seen: Stranger = { port, connections: 0, bytes: 0 };
  const server: Server = createServer((socket) => {
    seen.connections++;
    socket.on("error", () => socket.destroy());
    socket.on("data", (chunk) => {
      seen.bytes += chunk.length;
    });
    onTestFinished(() => void socket.destroy());
  });
  server.listen({ host: "127.0.0.1", port });
  await once(server, "listening");
  onTestFinished(() => void server.close());
  return seen;
}

it("spawn skips ports on which other programs listen, and sends these programs nothing", async () => {
  const fleet = await faultFleet();
  const { from } = fleet.ports;
  const strangers = await Promise.all([from, from + 1, from + 3].map(stranger));
  const servers = await Promise.all(["a", "b", "c"].map((user) => fleet.spawn(user)));
  expect(servers.map(({ port }) => port).sort()).toEqual([from + 2, from + 4, from + 5]);
  await expectConsistent(fleet);
  expect(strangers.map(({ connections }) => connections)).toEqual([0, 0, 0]);
});

it("spawn reports that other programs use every port of the range", async () => {
  const fleet = await faultFleet({}, { portCount: 2 });
  const { from } = fleet.ports;
  const strangers = await Promise.all([from, from + 1].map(stranger));
  const result = await fleet.run(["spawn", "--user", "alice", "--json"]);
  expect(result.code).toBe(6);
  expect(errorOf(result)).toMatchObject({
    code: "FLEET_PORTS_EXHAUSTED",
    message: expect.stringContaining("2 by programs"),
  });
  expect(strangers.map(({ connections }) => connections)).toEqual([0, 0]);
  expect(await fleet.record("alice")).toMatchObject({ state: "failed", port: null, claim: null });
});

it("spawn uses the next port when another program takes the first port just before the runtime listens on it", async () => {
  const gate = await openFolder();
  const fleet = await faultFleet(lateServers(gate));
  const { from } = fleet.ports;
  const { done } = fleet.start(["spawn", "--user", "alice", "--json"]);
  await eventually("the runtime", () => existsSync(join(gate, "started")));
  const thief = await stranger(from);
  await writeFile(join(gate, "open"), "");
  const result = await done;
  expect(result).toMatchObject({ code: 0 });
  const { server } = JSON.parse(result.stdout) as { server: ServerView };
  expect(server).toMatchObject({ state: "ready", port: from + 1 });
  expect(thief).toMatchObject({ connections: 0, bytes: 0 });
  const ports = (await readFile(join(gate, "started"), "utf8")).match(/--port \d+/g);
  expect(ports).toEqual([`--port ${from}`, `--port ${from + 1}`]);
  await expectConsistent(fleet);
});

it("connect and send do not connect to a program that took the port of a dead server, even if the server is recorded as ready", async () => {
  const fleet = await faultFleet();
  const killed = await killedServer(fleet);
  const thief = await stranger(fleet.ports.from);
  expect(await fleet.record("alice")).toMatchObject({ state: "ready", port: fleet.ports.from });

  const connect = await fleet.run(["connect", "--user", "alice", "--json"]);
  expect(connect.code).toBe(7);
  expect(errorOf(connect)).toMatchObject({ code: "FLEET_SERVER_LOST" });
  expect(connect.stdout).not.toContain(await readFile(join(killed.home, "..", "connection-token"), "utf8"));

  expect(await fleet.json(["send", "talk", "again", "--user", "alice"])).toMatchObject({ reply: "[turn 2] again" });
  expect(await fleet.record("alice")).toMatchObject({ state: "ready", port: fleet.ports.from + 1 });
  expect(thief).toMatchObject({ connections: 0, bytes: 0 });
  await expectConsistent(fleet);
});

it.each([["ps"], ["stop"], ["restart"], ["spawn"], ["list"], ["delete"]])(
  "%s does not connect to a program that took the port of a dead server",
  async (command) => {
    const fleet = await faultFleet();
    await killedServer(fleet);
    const thief = await stranger(fleet.ports.from);
    const args = { ps: [], list: [], delete: ["talk"] }[command] ?? ["--user", "alice"];
    await fleet.json([command, ...args]);
    expect(thief).toMatchObject({ connections: 0, bytes: 0 });
    await expectConsistent(fleet);
    expect(thief).toMatchObject({ connections: 0, bytes: 0 });
  },
);

/** Creates a server that had one turn, and kills it without the fleet noticing. */
async function killedServer(fleet: FaultFleet): Promise<ServerView> {
  const server = await fleet.spawn("alice");
  await fleet.json(["create", "--id", "talk", "--user", "alice", "--prompt", "hi"]);
  await killed(server.pid);
  return server;
}

it("other users of the machine get no answer from a server and cannot read any file of the state", async (ctx) => {
  if (process.getuid?.() !== 0) return ctx.skip("needs root, to become another user");
  const fleet = await faultFleet();
  const { port, home } = await fleet.spawn("alice");
  await fleet.json(["create", "--id", "talk", "--user", "alice", "--prompt", "hi"]);
  await appendFile(join(home, "mine"), "");
  const asNobody = (...argv: string[]) =>
    spawnSync("setpriv", ["--reuid", "65534", "--regid", "65534", "--clear-groups", ...argv], { encoding: "utf8" });

  const call = `
    const socket = require("node:net").connect(${port}, "127.0.0.1", () => socket.end(Buffer.from("FRAME", "base64")));
    socket.pipe(process.stdout);
  `;
  for (const params of [{}, { token: "" }, { token: "guess" }]) {
    const frame = encodeMessage({ id: 1, method: "connect", params });
    const { stdout } = asNobody(process.execPath, "-e", call.replace("FRAME", frame.toString("base64")));
    const [answer] = new MessageReader().push(Buffer.from(stdout));
    expect(answer).toMatchObject({ error: { message: expect.stringContaining("AUTHENTICATION_FAILED") } });
  }
  const list = encodeMessage({ id: 1, method: "session.list", params: {} });
  expect(asNobody(process.execPath, "-e", call.replace("FRAME", list.toString("base64"))).stdout).not.toContain("talk");

  expect(asNobody("find", fleet.root, "-mindepth", "1").stdout).toBe("");
  expect(asNobody("cat", join(home, "..", "connection-token"), join(fleet.root, "registry.json")).stdout).toBe("");
  expect(asNobody("sh", "-c", `cat /proc/${(await fleet.record("alice")).process?.pid}/environ`).stdout).toBe("");
});

it("only the owner can read the files and folders of the state, whatever the umask", async () => {
  const fleet = await faultFleet();
  await mkdir(join(fleet.root, ".."), { recursive: true });
  const loose = ["sh", "-c", 'umask 0; exec "$@"', "sh"];
  const { server } = await fleet.json<{ server: ServerView }>(["spawn", "--user", "alice"], { under: loose });
  await fleet.json(["create", "--id", "talk", "--user", "alice", "--prompt", "hi"], { under: loose });
  await fleet.json(["restart", "--user", "alice"], { under: loose });
  const modes = new Map<string, string>();
  for (const entry of await readdir(fleet.root, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    // Skip the contents of the home. The runtime sets their modes, and other users cannot open the home itself.
    if (path.startsWith(`${server.home}/`)) continue;
    modes.set(relative(fleet.root, path), ((await stat(path)).mode & 0o777).toString(8));
  }
  expect((await stat(fleet.root)).mode & 0o777).toBe(0o700);
  expect([...modes].filter(([, mode]) => !["600", "400", "700"].includes(mode))).toEqual([]);
  expect(modes.get(relative(fleet.root, server.home))).toBe("700");
  expect(modes.get(join("servers", server.id, "connection-token"))).toBe("600");
});
