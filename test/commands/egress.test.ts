import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  watch,
  writeFileSync,
} from "node:fs";
import { type AddressInfo, connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { expect, it, onTestFinished, vi } from "vitest";
import { LAUNCH_VARIABLE } from "../../src/base/server.js";
import {
  askProxy,
  type EgressStatus,
  ensureProxy,
  makeNetworkFolder,
  networkFolder,
  openEgress,
  rulesName,
} from "../../src/sandbox/network/egress.js";
import type { ServeContext } from "../../src/serve/context.js";
import { Upkeep } from "../../src/serve/upkeep.js";
import { isRunning } from "../fixtures/processes.js";

const PATIENCE = { timeout: 30_000, interval: 50 };

/** Creates a state folder whose path is too long for the path of a Unix socket. */
function newFleet() {
  const parent = mkdtempSync(join(tmpdir(), "fleet-egress-"));
  const stateRoot = join(parent, "x".repeat(120));
  mkdirSync(stateRoot, { mode: 0o700 });
  const folder = networkFolder(stateRoot);
  onTestFinished(async () => {
    delete process.env.EGRESS_TEST_SECRET;
    const running = await askProxy(folder);
    rmSync(parent, { recursive: true });
    if (running !== null) process.kill(running.pid, "SIGKILL");
  });
  process.env.EGRESS_TEST_SECRET = "canary";
  return { stateRoot, folder };
}

/** Starts a process with a launch id in its environment, like the process of a server. */
function serverProcess(launchId: string, variables: NodeJS.ProcessEnv = {}): ChildProcess {
  const env = { ...process.env, ...variables, [LAUNCH_VARIABLE]: launchId };
  const child = spawn("sleep", ["600"], { env });
  onTestFinished(() => void child.kill("SIGKILL"));
  return child;
}

async function answerOf(folder: string, launchId: string, target: string): Promise<string> {
  const held = openSync(folder, "r");
  // The path through the descriptor is short enough for a Unix socket.
  const socket = connect(`/proc/self/fd/${held}/egress`, () => closeSync(held));
  let answer = "";
  socket.on("data", (chunk) => (answer += chunk.toString()));
  socket.write(`${launchId}\nCONNECT ${target} HTTP/1.1\r\nHost: x\r\n\r\n`);
  await vi.waitFor(() => expect(answer).toContain("\r\n\r\n"), PATIENCE);
  socket.destroy();
  return answer;
}

/** Returns the status of the proxy in this folder. Fails if no proxy answers. */
async function proxyIn(folder: string): Promise<EgressStatus> {
  const status = await askProxy(folder);
  if (status === null) throw new Error("no proxy answers");
  return status;
}

const old = (path: string) => utimesSync(path, new Date(Date.now() - 120_000), new Date(Date.now() - 120_000));
const rulesPath = (folder: string, launchId: string) => join(folder, "servers", rulesName(launchId));

it("the egress proxy applies each server's own rules, and logs each refusal with the server's user", async () => {
  const { stateRoot, folder } = newFleet();
  const host = createServer((socket) => socket.end());
  host.listen(0, "127.0.0.1");
  await once(host, "listening");
  onTestFinished(() => void host.close());
  const target = `127.0.0.1:${(host.address() as AddressInfo).port}`;
  const [alice, bob] = [randomUUID(), randomUUID()];
  await openEgress(stateRoot, alice, { user: "alice", server: "alice-1", allow: [target] });
  await openEgress(stateRoot, bob, { user: "bob", server: "bob-1", allow: ["localhost:*"] });
  expect(statSync(rulesPath(folder, alice)).mode & 0o777).toBe(0o600);
  expect(await answerOf(folder, alice, target)).toContain("200 Connection established");
  expect(await answerOf(folder, bob, target)).toContain("403 Forbidden by sandbox.allow");
  expect(await answerOf(folder, bob, target.replace("127.0.0.1", "localhost"))).toContain(
    "private or reserved address",
  );
  expect(await answerOf(folder, randomUUID(), target)).toContain("does not know this server");
  expect(await answerOf(folder, "../servers/x", target)).toContain("does not know this server");
  const status = await proxyIn(folder);
  expect(status.counts).toEqual({ allowed: 1, refused: 3, blocked: 1, failed: 0, limited: 0 });
  const lines = readFileSync(join(folder, "egress.log"), "utf8").trim().split("\n");
  expect(lines.map((line) => JSON.parse(line))).toMatchObject([
    { user: "bob", server: "bob-1", result: "refused", host: "127.0.0.1" },
    { user: "bob", server: "bob-1", result: "blocked", host: "localhost" },
  ]);
  // The proxy outlives the command, so it must not have the command's secrets.
  expect(readFileSync(`/proc/${status.pid}/environ`, "utf8")).not.toContain("canary");
});

it("an egress proxy that replaces a killed proxy has the rules of the servers that already run", async () => {
  const { stateRoot, folder } = newFleet();
  const launchId = randomUUID();
  await openEgress(stateRoot, launchId, { user: "alice", server: "alice-1", allow: [] });
  const first = await proxyIn(folder);
  process.kill(first.pid, "SIGKILL");
  await vi.waitFor(async () => expect(await askProxy(folder)).toBeNull(), PATIENCE);
  const second = await ensureProxy(folder);
  expect(second.id).not.toBe(first.id);
  expect((await ensureProxy(folder)).id).toBe(second.id);
  expect(await answerOf(folder, launchId, "a.example:443")).toContain("allows no connection to a.example");
});

it("an egress proxy that hangs is replaced, and exits as soon as it resumes", async () => {
  const { stateRoot, folder } = newFleet();
  await openEgress(stateRoot, randomUUID(), { user: "alice", server: "alice-1", allow: [] });
  const first = (await proxyIn(folder)).pid;
  process.kill(first, "SIGSTOP");
  onTestFinished(() => {
    if (isRunning(first)) process.kill(first, "SIGKILL");
  });
  const second = await ensureProxy(folder);
  expect(second.pid).not.toBe(first);
  process.kill(first, "SIGCONT");
  await vi.waitFor(() => expect(isRunning(first)).toBe(false), PATIENCE);
  expect((await proxyIn(folder)).pid).toBe(second.pid);
});

it("the egress proxy exits after its last server has ended, and leaves no socket and no rules", async () => {
  const { stateRoot, folder } = newFleet();
  const [live, dead] = [randomUUID(), randomUUID()];
  const server = serverProcess(live);
  for (const launchId of [live, dead]) {
    await openEgress(stateRoot, launchId, { user: "alice", server: "alice-1", allow: [] });
    old(rulesPath(folder, launchId));
  }
  writeFileSync(join(folder, "egress.log"), "");
  const pid = (await proxyIn(folder)).pid;
  await vi.waitFor(() => expect(readdirSync(join(folder, "servers"))).toEqual([rulesName(live)]), PATIENCE);
  expect(isRunning(pid)).toBe(true);
  server.kill("SIGKILL");
  await vi.waitFor(() => expect(isRunning(pid)).toBe(false), PATIENCE);
  expect(readdirSync(folder).filter((name) => /^egress(?:\.[0-9a-f]{12})?$/.test(name))).toEqual([]);
  expect(readdirSync(join(folder, "servers"))).toEqual([]);
});

it("no file name contains a launch id, because a server could use the id to get another server's egress rules", async () => {
  const { stateRoot, folder } = newFleet();
  const launchId = randomUUID();
  const names: string[] = [];
  const watches = [stateRoot, makeNetworkFolder(stateRoot), join(folder, "servers")].map((path) =>
    watch(path, (_, name) => void names.push(String(name))),
  );
  onTestFinished(() => {
    for (const watched of watches) watched.close();
  });
  await openEgress(stateRoot, launchId, { user: "alice", server: "alice-1", allow: [] });
  await vi.waitFor(() => expect(names.length).toBeGreaterThan(2), PATIENCE);
  expect(names.filter((name) => name.includes(launchId))).toEqual([]);
  expect(await answerOf(folder, rulesName(launchId).replace(".json", ""), "a.example:443")).toContain("not know");
});

it("the egress proxy keeps running even if an agent sets the modification time of the proxy's socket back", async () => {
  const { stateRoot, folder } = newFleet();
  await openEgress(stateRoot, randomUUID(), { user: "alice", server: "alice-1", allow: [] });
  const first = await proxyIn(folder);
  old(join(folder, "egress"));
  await delay(6_000); // longer than the time between two of the proxy's checks
  expect((await proxyIn(folder)).id).toBe(first.id);
});

it("serve replaces a killed egress proxy if a server needs it, and counts the requests of both proxies", async () => {
  const { stateRoot, folder } = newFleet();
  const launchId = randomUUID();
  await openEgress(stateRoot, launchId, { user: "alice", server: "alice-1", allow: [] });
  const counted: Record<string, number> = {};
  const inc = ({ result }: { result: string }, count: number) => {
    counted[result] = (counted[result] ?? 0) + count;
  };
  const metrics = { series: { egress: { inc } } };
  const unused = undefined as never;
  const egress = new Upkeep({ stateRoot, metrics } as unknown as ServeContext, unused, unused, unused);
  const look = async () =>
    await egress.watchEgress([{ sandbox: { mode: "landlock", not: [], network: "allow-list" } }]);
  await answerOf(folder, launchId, "before.example:443");
  await look();
  await answerOf(folder, launchId, "a.example:443");
  await look();
  expect(counted).toMatchObject({ refused: 1, allowed: 0 });
  process.kill((await proxyIn(folder)).pid, "SIGKILL");
  await vi.waitFor(async () => expect(await askProxy(folder)).toBeNull(), PATIENCE);
  await egress.watchEgress([{ sandbox: { mode: "landlock", not: [], network: "none" } }]);
  expect(await askProxy(folder)).toBeNull();
  await look();
  await answerOf(folder, launchId, "b.example:443");
  await look();
  expect(counted).toMatchObject({ refused: 2 });
});
