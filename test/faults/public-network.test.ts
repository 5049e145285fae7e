import { chmodSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { serverIdOf } from "../../src/base/ids.js";
import { NO_SANDBOX, type SandboxMode } from "../../src/base/sandbox.js";
import { homeOf } from "../../src/runtime/files/server-folder.js";
import type { ServerView } from "../../src/servers/server.js";
import { bundleFixture } from "../fixtures/bundle.js";
import type { RunOptions } from "../fixtures/commands/command.js";
import { eventually } from "../fixtures/eventually.js";
import { errorOf, type FaultFleet, openFolder } from "../fixtures/fleets/fault-fleet.js";
import { fleetAs } from "../fixtures/fleets/user-fleet.js";
import { HELLO, type Machine, machineProblem, OWN, openMachine, PRIVATE, PUBLIC } from "../fixtures/hosts/machine.js";
import { killed } from "../fixtures/processes.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";
import { publicProblem } from "../fixtures/programs/network.js";
import { without } from "../fixtures/programs/seccomp.js";

const services = bundleFixture("machine-services");
const isPossible = process.getuid?.() === 0 && publicProblem === undefined && machineProblem() === undefined;

interface Case {
  mode: Exclude<SandboxMode, "none">;
  as: "root" | "an ordinary user";
}

const CASES = (
  [
    { mode: "landlock", as: "an ordinary user" },
    { mode: "bwrap", as: "root" },
    { mode: "bwrap", as: "an ordinary user" },
  ] satisfies Case[]
).filter(({ mode }) => mode !== "bwrap" || bwrapProblem === undefined);

/** Ways to reach an address, as lines of bash that succeed only if a service says hello. */
const WAYS = {
  tcp: (address: string) => `exec 3<>/dev/tcp/${address}/${HELLO} && read -rn 1 -t 3 -u 3`,
  udp: (address: string) => `exec 3<>/dev/udp/${address}/${HELLO} && echo hello >&3 && read -rn 1 -t 3 -u 3`,
  // With the interface as a part of the request, the kernel ignores routes that forbid the address.
  "tcp by the interface": (address: string) => {
    const [family, make] = address.includes(":")
      ? ["AF_INET6", `pack_sockaddr_in6(${HELLO}, inet_pton(AF_INET6, "${address}"))`]
      : ["AF_INET", `pack_sockaddr_in(${HELLO}, inet_aton("${address}"))`];
    const options = `setsockopt(S, SOL_SOCKET, 25, "public\\0") or exit 2`;
    return `perl -MSocket=:all -e 'socket(S, ${family}, SOCK_STREAM, 0); ${options}; connect(S, ${make}) or exit 1; <S> or exit 1'`;
  },
};

/** How long a way may take that should not work. No answer comes then, so this decides nothing. */
const REFUSED_S = 2;
/** How long a way may take that should work. An address of version 6 works only some seconds after the start. */
const ALLOWED_S = 30;

const attempt = (seconds: number, script: string) => `timeout ${seconds} bash -c ${quoted(script)}`;
const repeated = (script: string) => attempt(ALLOWED_S, `until ( ${script} ); do sleep 0.2; done`);

/** The attempts of an agent, by name, and those that should succeed. */
const allowed = new Map<string, string>();
const refused = new Map<string, string>();
for (const [way, script] of Object.entries(WAYS)) {
  for (const address of PUBLIC) allowed.set(`${way} ${address}`, repeated(script(address)));
  for (const address of [...OWN, ...PRIVATE, "45.0.0.77"])
    refused.set(`${way} ${address}`, attempt(REFUSED_S, script(address)));
}
allowed.set("tcp by name", repeated(WAYS.tcp("some.example")));
allowed.set("tcp by name, asked by tcp", `RES_OPTIONS=use-vc ${repeated(WAYS.tcp("other.example"))}`);
refused.set("bob's server", attempt(REFUSED_S, `exec 3<>/dev/tcp/127.0.0.1/$bobPort`));

function quoted(script: string): string {
  return `'${script.replaceAll("'", "'\\''")}'`;
}

interface Setting {
  machine: Machine;
  fleet: FaultFleet;
  run: RunOptions;
  /** Like `run`, without some system calls. */
  runWithout(calls: Parameters<typeof without>[0]): RunOptions;
}

async function setting({ mode, as }: Case, env: NodeJS.ProcessEnv = {}): Promise<Setting> {
  const machine = await openMachine(await openFolder(), services);
  const all = {
    COPILOTFLEET_PROVIDER_TYPE: "openai",
    COPILOTFLEET_PROVIDER_BASE_URL: machine.baseUrl,
    COPILOTFLEET_SESSION_APPROVE: "all",
    COPILOTFLEET_SANDBOX_MODE: mode,
    COPILOTFLEET_SANDBOX_NETWORK: "public",
    ...env,
  };
  const { fleet, run } = await fleetAs(as, all);
  const asUser = run.under ?? [];
  return {
    ...{ machine, fleet, run: { under: [...machine.under, ...asUser] } },
    runWithout: (calls) => ({ under: [...machine.under, ...without(calls, fleet.folder), ...asUser] }),
  };
}

/** Lets alice's agent run a script with bash. */
async function asAgent({ fleet, run }: Setting, script: string): Promise<string> {
  const home = homeOf(fleet.root, serverIdOf("alice"));
  writeFileSync(join(home, "agent.sh"), `(${script}\n) > "$HOME/result" 2>/dev/null\nexit 0\n`);
  chmodSync(join(home, "agent.sh"), 0o644);
  const call = { command: `bash '${join(home, "agent.sh")}'`, description: "works" };
  await fleet.ok(["send", "of-alice", `!tool bash ${JSON.stringify(call)}`, "--user", "alice"], run);
  return readFileSync(join(home, "result"), "utf8");
}

it.skipIf(!isPossible).each(CASES)(
  'with sandbox.network "public", in sandbox mode $mode as $as, an agent reaches public addresses alone',
  async (one) => {
    const at = await setting(one);
    const { fleet, machine, run } = at;
    for (const name of ["bob", "alice"]) await fleet.ok(["create", "--user", name, "--id", `of-${name}`], run);
    const { servers } = await fleet.json<{ servers: ServerView[] }>(["ps"], run);
    const { sandbox = NO_SANDBOX } = servers.find(({ user }) => user === "alice") ?? {};
    expect(sandbox).toMatchObject({ mode: one.mode, network: "public" });
    expect(sandbox.not).not.toContain("network");
    const bobPort = servers.find(({ user }) => user === "bob")?.port;
    // The machine gets this address while the server runs.
    machine.sh("ip addr add 45.0.0.77/24 dev outside");

    const attempts = [...allowed, ...refused];
    const lines = attempts.map(([, script], index) => `( ${script} ) && echo ${index} &`);
    const result = await asAgent(at, [`export bobPort=${bobPort}`, ...lines, "wait"].join("\n"));
    const worked = new Set(result.split("\n"));
    const reached = attempts.filter((_, index) => worked.has(String(index))).map(([name]) => name);
    expect(reached).toEqual([...allowed.keys()]);

    // A port that an agent binds is in its own namespace.
    const bind = `perl -MSocket -e 'socket(S, AF_INET, SOCK_STREAM, 0); bind(S, pack_sockaddr_in(${bobPort}, INADDR_ANY)) or exit 1; listen(S, 5) or exit 1'`;
    expect(await asAgent(at, `${bind} && echo bound`)).toBe("bound\n");
    expect(await fleet.ok(["send", "of-bob", "ping", "--user", "bob"], run)).not.toBe("");
    await fleet.ok(["stop", "--all", "--force"], run);
    await eventually("the end of passt", () => machine.passts().length === 0);
  },
);

it.skipIf(!isPossible)(
  "passt begins with the first packet, and without it, the fleet restarts the server",
  async () => {
    const at = await setting({ mode: "landlock", as: "an ordinary user" });
    const { fleet, machine, run } = at;
    await fleet.ok(["create", "--user", "alice", "--id", "of-alice"], run);
    expect(await asAgent(at, `${WAYS.tcp(PUBLIC[0] ?? "")} && echo reached`)).toBe("reached\n");
    const [passt = 0, ...more] = machine.passts();
    expect(more).toEqual([]);
    const { servers } = await fleet.json<{ servers: ServerView[] }>(["ps"], run);
    const listens = () => machine.sh("ss -Hltn").includes(`:${servers[0]?.port} `);
    expect(listens()).toBe(true);
    await killed(passt);
    await eventually("the end of the bridge", () => !listens());
    const sent = await fleet.run(["send", "of-alice", "again", "--user", "alice", "--json"], run);
    expect(errorOf(sent)).toMatchObject({ code: "FLEET_SERVER_LOST" });
    await fleet.ok(["restart", serverIdOf("alice"), "--force"], run);
    expect(await asAgent(at, `${WAYS.tcp(PUBLIC[0] ?? "")} && echo reached`)).toBe("reached\n");
    await fleet.ok(["stop", "--all", "--force"], run);
  },
);

it.skipIf(!isPossible)(
  'where "public" does not work, "auto" leaves the network open, and "public" starts no server',
  async () => {
    const at = await setting({ mode: "landlock", as: "an ordinary user" }, { COPILOTFLEET_SANDBOX_NETWORK: "auto" });
    const { fleet, machine, run } = at;
    machine.sh("mount --bind /dev/null /dev/net/tun");
    await fleet.ok(["create", "--user", "alice", "--id", "of-alice"], run);
    const { servers } = await fleet.json<{ servers: ServerView[] }>(["ps"], run);
    expect(servers[0]?.sandbox?.not).toContain("network");
    const doctor = await fleet.run(["doctor", "--quick"], run);
    expect(doctor.stdout).toContain('sandbox.network "public" does not work, because a network namespace failed');
    await fleet.ok(["stop", "--all", "--force"], run);
    const refusedRun = { ...run, env: { COPILOTFLEET_SANDBOX_NETWORK: "public" } };
    const { code, message } = errorOf(await fleet.run(["spawn", "--user", "alice", "--json"], refusedRun));
    expect(code).toBe("FLEET_SANDBOX_UNUSABLE");
    expect(message).toContain('sandbox.network is "public", but a network namespace failed');
    await fleet.ok(["spawn", "--user", "alice"], at.runWithout(["unshare"]));
    await fleet.ok(["stop", "--all", "--force"], run);
  },
);
