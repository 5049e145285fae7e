import { createSocket } from "node:dgram";
import { once } from "node:events";
import { chmodSync, existsSync, readdirSync, readFileSync, utimesSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { serverIdOf } from "../../src/base/ids.js";
import { NO_SANDBOX, type SandboxMode } from "../../src/base/sandbox.js";
import { homeOf } from "../../src/runtime/files/server-folder.js";
import type { ServerView } from "../../src/servers/server.js";
import type { RunOptions } from "../fixtures/commands/command.js";
import { eventually } from "../fixtures/eventually.js";
import { errorOf, type FaultFleet, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, serve } from "../fixtures/fleets/serve.js";
import { fleetAs } from "../fixtures/fleets/user-fleet.js";
import { startToolModel } from "../fixtures/models/tool-model.js";
import { startWireModel } from "../fixtures/models/wire-model.js";
import { isRunning, killed } from "../fixtures/processes.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";
import { networkProblem } from "../fixtures/programs/network.js";
import { without } from "../fixtures/programs/seccomp.js";

/** Attempts to reach the rest of the machine, each as a line of bash that succeeds only if the network allows it. */
const WAYS = {
  "connects to bob's server": 'exec 3<>"/dev/tcp/127.0.0.1/$bobPort"',
  "connects to another service of the machine": 'exec 3<>"/dev/tcp/127.0.0.1/$service"',
  "gets an answer by UDP": 'exec 3<>"/dev/udp/127.0.0.1/$datagrams" && echo hello >&3 && read -rn 1 -t 5 -u 3',
  "makes a socket to the host of a virtual machine": "perl -e 'socket(S, 40, 1, 0) or exit 1'",
} as const;

interface Case {
  mode: Exclude<SandboxMode, "none">;
  as: "root" | "an ordinary user";
  network: "open" | "none" | "allow-list";
}

const IS_ROOT = process.getuid?.() === 0;
const isPossible = networkProblem === undefined && IS_ROOT;
const hasBwrap = isPossible && bwrapProblem === undefined;
const CASES: Case[] = (
  [
    { mode: "landlock", as: "an ordinary user", network: "open" },
    { mode: "landlock", as: "an ordinary user", network: "allow-list" },
    { mode: "bwrap", as: "root", network: "allow-list" },
    { mode: "bwrap", as: "an ordinary user", network: "none" },
  ] satisfies Case[]
).filter(({ mode }) => mode !== "bwrap" || bwrapProblem === undefined);

const RESTRICTED = {
  COPILOTFLEET_PROVIDER_TYPE: "echo",
  COPILOTFLEET_SANDBOX_MODE: "bwrap",
  COPILOTFLEET_SANDBOX_NETWORK: "none",
};

async function services() {
  const service = createServer().listen(0, "127.0.0.1");
  await once(service, "listening");
  const datagrams = createSocket("udp4", (_, { port, address }) => void datagrams.send("hello\n", port, address));
  datagrams.bind(0, "127.0.0.1");
  await once(datagrams, "listening");
  onTestFinished(() => {
    service.close();
    datagrams.close();
  });
  return { service: (service.address() as AddressInfo).port, datagrams: datagrams.address().port };
}

/** Lets alice's agent try each of `WAYS`, and returns the names of those that succeeded. */
async function openWays(fleet: FaultFleet, variables: Record<string, number>, run: RunOptions): Promise<string[]> {
  const home = homeOf(fleet.root, serverIdOf("alice"));
  const lines = Object.entries(variables).map(([name, value]) => `export ${name}=${value}`);
  const tries = Object.values(WAYS).map(
    (script, index) => `( ${script} ) >/dev/null 2>&1 && echo ${index} >> "$HOME/result"`,
  );
  writeFileSync(join(home, "ways.sh"), [...lines, 'echo begin > "$HOME/result"', ...tries, "exit 0"].join("\n"));
  chmodSync(join(home, "ways.sh"), 0o644);
  const call = { command: `bash '${join(home, "ways.sh")}'`, description: "works" };
  await fleet.ok(["send", "of-alice", `!tool bash ${JSON.stringify(call)}`, "--user", "alice"], run);
  const result = readFileSync(join(home, "result"), "utf8");
  expect(result).toContain("begin");
  return Object.keys(WAYS).filter((_, index) => result.split("\n").includes(String(index)));
}

it.skipIf(!isPossible).each(CASES)(
  "with sandbox.network $network, in sandbox mode $mode as $as, an agent reaches only what that network allows",
  async ({ mode, as, network }) => {
    await using model = await startToolModel();
    const env: NodeJS.ProcessEnv = {
      ...model.env,
      COPILOTFLEET_SANDBOX_MODE: mode,
      COPILOTFLEET_SANDBOX_NETWORK: network,
      ...(network === "allow-list" ? { COPILOTFLEET_SANDBOX_ALLOW: "example.com" } : {}),
    };
    const { fleet, run } = await fleetAs(as, env);
    for (const name of ["bob", "alice"]) await fleet.ok(["create", "--user", name, "--id", `of-${name}`], run);
    const { servers } = await fleet.json<{ servers: ServerView[] }>(["ps"], run);
    const of = (name: string) => servers.find((server) => server.user === name);
    const { sandbox = NO_SANDBOX } = of("alice") ?? {};
    expect(sandbox.mode).toBe(mode);
    expect(sandbox.network).toBe(network === "open" ? undefined : network);
    expect(sandbox.not.includes("network")).toBe(network === "open");
    const variables = { bobPort: of("bob")?.port ?? 0, ...(await services()) };
    expect(await openWays(fleet, variables, run)).toEqual(network === "open" ? Object.keys(WAYS) : []);
    if (network === "open") return;
    const left = readdirSync(join(fleet.root, "network")).filter((name) => name.endsWith(".0"));
    expect(left, "sockets of model gateways").toEqual([]);
  },
);

it.skipIf(!isPossible)("a server without a network can use a model provider that needs a key", async () => {
  await using model = await startWireModel("the-key");
  const fleet = await faultFleet({
    ...RESTRICTED,
    COPILOTFLEET_PROVIDER_TYPE: "openai",
    COPILOTFLEET_PROVIDER_BASE_URL: `${model.origin}/v1`,
    COPILOTFLEET_PROVIDER_API_KEY: '{"env":"MODEL_KEY"}',
    MODEL_KEY: "the-key",
  });
  expect(await fleet.ok(["create", "--user", "alice", "--id", "one", "--prompt", "ping"])).toContain("pong");
  expect(await fleet.ok(["send", "one", "ping", "--user", "alice"])).toContain("pong");
});

interface Pair {
  runtime: number;
  bridge: number;
  port: number;
}

async function pairOf(fleet: FaultFleet): Promise<Pair> {
  const { process: identity, port } = await fleet.record("alice");
  if (identity?.bridge === undefined) throw new Error("the record has no bridge");
  return { runtime: identity.pid, bridge: identity.bridge.pid, port: port ?? 0 };
}

it.skipIf(!hasBwrap)("a program that takes the port of a dead bridge gets no connection from the fleet", async () => {
  const fleet = await faultFleet(RESTRICTED);
  await fleet.ok(["create", "--user", "alice", "--id", "one", "--prompt", "hello"]);
  const { runtime, bridge, port } = await pairOf(fleet);
  await killed(bridge);
  let connections = 0;
  const stranger = createServer((socket) => {
    connections++;
    socket.destroy();
  }).listen(port, "127.0.0.1");
  await once(stranger, "listening");
  onTestFinished(() => void stranger.close());
  const sent = await fleet.run(["send", "one", "again", "--user", "alice", "--json"]);
  expect(errorOf(sent)).toMatchObject({
    code: "FLEET_SERVER_LOST",
    suggestions: [`copilotfleet restart ${serverIdOf("alice")}`],
  });
  expect(connections).toBe(0);
  expect(isRunning(runtime)).toBe(true);
  await fleet.ok(["restart", serverIdOf("alice"), "--force"]);
  expect(await fleet.ok(["send", "one", "again", "--user", "alice"])).toContain("[turn 2] again");
  expect(connections).toBe(0);
});

it.skipIf(!hasBwrap)("serve restarts a server whose bridge has died", async () => {
  const fleet = await faultFleet({ ...RESTRICTED, ...FAST_HEALTH });
  await fleet.ok(["create", "--user", "alice", "--id", "one", "--prompt", "hello"]);
  const first = await pairOf(fleet);
  await serve(fleet);
  await killed(first.bridge);
  const second = await eventually("the new server", async () => {
    const pair = await pairOf(fleet).catch(() => null);
    return pair !== null && pair.runtime !== first.runtime ? pair : null;
  });
  expect(isRunning(second.bridge)).toBe(true);
  expect(await fleet.ok(["send", "one", "again", "--user", "alice"])).toContain("[turn 2] again");
});

it.skipIf(!hasBwrap)(
  "a server whose starter died is adopted with its bridge, and stop ends both processes",
  async () => {
    const fleet = await faultFleet(RESTRICTED);
    await fleet.spawn("alice");
    const pair = await pairOf(fleet);
    await fleet.tamper("alice", (record) => {
      const dead = record.process === null ? null : { ...record.process, pid: 1, startTicks: "1" };
      Object.assign(record, { state: "starting", process: null, claim: dead });
    });
    await fleet.spawn("alice");
    expect(await pairOf(fleet)).toEqual(pair);
    await fleet.ok(["stop", "--all"]);
    expect([pair.runtime, pair.bridge].filter(isRunning)).toEqual([]);
  },
);

it.skipIf(!hasBwrap)("a later command removes the model gateway socket that a killed command left", async () => {
  const fleet = await faultFleet(RESTRICTED);
  await fleet.ok(["create", "--user", "alice", "--id", "one", "--prompt", "hello"]);
  const folder = join(fleet.root, "network");
  const { done, child } = fleet.start(["send", "one", "!delay 60000 slow", "--user", "alice"]);
  const socket = await eventually("the socket", () => readdirSync(folder).find((name) => name.endsWith(".0")));
  child.kill("SIGKILL");
  await done;
  expect(existsSync(join(folder, socket))).toBe(true);
  utimesSync(join(folder, socket), 0, 0);
  await fleet.ok(["create", "--user", "alice", "--id", "two", "--prompt", "hello"]);
  expect(existsSync(join(folder, socket))).toBe(false);
});

it.skipIf(!IS_ROOT)("with sandbox.network none, no server starts where network namespaces do not work", async () => {
  const fleet = await faultFleet({ ...RESTRICTED, COPILOTFLEET_SANDBOX_MODE: "auto" });
  const under = without(["unshare"], fleet.folder);
  const result = await fleet.run(["spawn", "--user", "alice", "--json"], { under });
  const { code, message } = errorOf(result);
  expect(code).toBe("FLEET_SANDBOX_UNUSABLE");
  expect(message).toMatch(
    /^sandbox\.network is "none", but a network namespace failed \(.*refuses a network namespace/,
  );
});
