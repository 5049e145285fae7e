import { execFileSync, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chownSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it, onTestFinished } from "vitest";
import { serverIdOf } from "../../src/model/ids.js";
import { NO_SANDBOX, type Protection, type SandboxMode } from "../../src/model/sandbox.js";
import type { ServerView } from "../../src/pool/server.js";
import { homeOf } from "../../src/runtime/files/server-folder.js";
import type { RunOptions } from "../fixtures/commands/command.js";
import { type FaultFleet, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { serve } from "../fixtures/fleets/serve.js";
import { userFleet } from "../fixtures/fleets/user-fleet.js";
import { startToolModel } from "../fixtures/models/tool-model.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";

/** Attacks that the agent of alice tries with its shell. Each line of bash succeeds only if the attack does. */
const ATTACKS = {
  "reads bob's conversations": 'cat "$bobHome"/session-state/*/events.jsonl | grep -q "a word of bob"',
  "reads bob's connection token": 'cat "$bobHome/../connection-token"',
  "reads the log of bob's server": 'cat "$bobHome/../server.log"',
  // Some machines have no python3 that the sandbox reaches. 434 is pidfd_open, and 438 is pidfd_getfd.
  "reads the log of its own server": `perl -e '
$log = syscall(438, syscall(434, $ARGV[0] + 0, 0), 1, 0);
open(LOG, "<&=", $log) && sysseek(LOG, 0, 0) && sysread(LOG, $byte, 1) or exit 1' "$own" || cat "$HOME/../server.log"`,
  "reads the registry": 'cat "$state/registry.json"',
  "lists the state folder": 'ls "$state"',
  "reads the environment of bob's server": 'grep -aq COPILOT_CONNECTION_TOKEN "/proc/$bob/environ"',
  "reads the environment of serve": 'grep -aq COPILOTFLEET_HOME "/proc/$serve/environ"',
  "opens the memory of bob's server": 'exec 3<"/proc/$bob/mem"',
  "opens the memory of serve": 'exec 3<"/proc/$serve/mem"',
  "sees the files of bob's server": 'ls -l "/proc/$bob/fd/1"',
  "reads bob's GitHub token file": 'grep -q "token of bob" "$tokens/bob"',
  "mints a token for bob": 'COPILOTFLEET_HOME="$state" "$node" "$command" token issue --user bob',
  "writes to bob's home": 'echo attack > "$bobHome/attack"',
  "writes to the home of the fleet's account": 'echo attack > "$account/.profile"',
  "makes a link to bob's home and writes through it":
    'ln -s "$bobHome" "$HOME/bob" && echo attack > "$HOME/bob/attack"',
  "changes a limit of bob's server": 'prlimit --pid "$bob" --core=0:0',
  "slows down bob's server": 'renice -n 19 -p "$bob"',
  "opens a terminal": "exec 3<>/dev/ptmx",
  "makes a device": 'mknod "$HOME/device-$$" c 1 3',
  "signals bob's server": 'kill -0 "$bob"',
  "signals serve": 'kill -0 "$serve"',
  "signals the process group of bob's server": 'kill -0 -- "-$bob"',
  "writes to a folder that it may only read": 'cat "$readable/file" && echo attack > "$readable/file"',
  "overwrites the fleet's code": 'echo attack > "$code/attack"',
} as const;

const CONNECT = "IO::Socket::UNIX->new(Peer => shift) or exit 1";

/** Attacks on what some sandboxes leave open. Each succeeds exactly where `not` of the server contains its word. */
const LEFT_OPEN: Readonly<Record<string, readonly [Protection, script: string]>> = {
  "sees that bob has a connection token": ["metadata", 'stat "$bobHome/../connection-token"'],
  "sees the entry of bob's home in a list": ["metadata", '[ -e "$bobHome" ]'],
  "changes the times of bob's GitHub token file": [
    "metadata",
    '[ -e "$tokens/bob" ] && touch -d 2001-01-01 "$tokens/bob"',
  ],
  "changes the mode of bob's GitHub token file": ["metadata", 'chmod 644 "$tokens/bob"'],
  "sees the command line of bob's server": ["process-list", 'grep -aq headless "/proc/$bob/cmdline"'],
  "sees that serve runs": ["process-list", '[ -d "/proc/$serve" ]'],
  "sees the account's shared memory": ["ipc", 'ipcs --shmems --id "$memory" | grep -q shmid='],
  "sees the account's message queue": ["ipc", 'ipcs --queues --id "$queue" | grep -q msqid='],
  "connects to the Unix socket of another program": [
    "unix-sockets",
    `perl -MIO::Socket::UNIX -e '${CONNECT}' "$socket"`,
  ],
  "connects to bob's port": ["network", 'exec 3<>"/dev/tcp/127.0.0.1/$bobPort"'],
};

/** Work that the agent may do in its own sandbox. */
const NEEDS = {
  "writes to its home": 'echo work > "$HOME/work"',
  "writes to its temporary folder": 'echo work > "$(mktemp)"',
  "runs programs of the system": "git --version && grep -q root /etc/passwd",
  "signals its own processes": "sleep 60 & kill $!",
  "writes to its working folder": 'echo work > "$PWD/work"',
  "writes to the folder of sandbox.binds": 'echo work > "$bound/work"',
  "uses devices": "head -c 1 /dev/urandom > /dev/null",
} as const;

/** Runs each attack in alice's agent, and returns those that succeeded. */
async function succeeding(
  fleet: FaultFleet,
  scripts: Record<string, string>,
  variables: Record<string, string>,
  run: RunOptions,
): Promise<string[]> {
  const home = homeOf(fleet.root, serverIdOf("alice"));
  const lines = Object.entries(variables).map(([name, value]) => `export ${name}='${value}'`);
  const tries = Object.values(scripts).map(
    (script, index) => `( ${script} ) >/dev/null 2>&1 && echo ${index} >> "$result"`,
  );
  writeFileSync(
    join(home, "attack.sh"),
    ['result="$HOME/result"; : > "$result"', ...lines, ...tries, "exit 0"].join("\n"),
  );
  const call = { command: `bash '${join(home, "attack.sh")}'`, description: "works" };
  await fleet.ok(["send", "of-alice", `!tool bash ${JSON.stringify(call)}`, "--user", "alice"], run);
  const indexes = readFileSync(join(home, "result"), "utf8").match(/\d+/g) ?? ([] as string[]);
  return Object.keys(scripts).filter((_, index) => indexes.includes(String(index)));
}

/** A program that listens on a Unix socket. @returns the path of the socket */
async function listen(path: string, uid: number): Promise<string> {
  const server = createServer().listen(path);
  onTestFinished(() => void server.close());
  await once(server, "listening");
  chownSync(path, uid, uid);
  return path;
}

/** Makes something that processes of one account share. @returns its id */
function shared(kind: "--shmem" | "--queue", size: readonly string[], { under = [] }: RunOptions): string {
  const [program = "", ...args] = [...under, "ipcmk", kind, ...size];
  const id = /\d+/.exec(execFileSync(program, args, { encoding: "utf8" }))?.[0] ?? "";
  onTestFinished(() => void spawnSync("ipcrm", [kind === "--shmem" ? "--shmem-id" : "--queue-id", id]));
  return id;
}

interface Case {
  mode: SandboxMode;
  as: "root" | "an ordinary user";
}

const ROOT = process.getuid?.() === 0;
const CASES: Case[] = [
  { mode: "landlock", as: "root" },
  { mode: "landlock", as: "an ordinary user" },
  ...(bwrapProblem === undefined
    ? (["root", "an ordinary user"] as const).map((as) => ({ mode: "bwrap", as }) as const)
    : []),
  { mode: "none", as: "root" },
];

it.skipIf(!ROOT).each(CASES)(
  "an agent with a shell in the sandbox $mode of $as does no damage, and without a sandbox all of it",
  async ({ mode, as }) => {
    await using model = await startToolModel();
    const env: NodeJS.ProcessEnv = {
      COPILOTFLEET_PROVIDER_TYPE: "openai",
      COPILOTFLEET_PROVIDER_BASE_URL: model.baseUrl,
      COPILOTFLEET_SESSION_APPROVE: "all",
      COPILOTFLEET_SANDBOX_MODE: mode,
    };
    const user = as === "root" ? null : await userFleet(env);
    const fleet = user?.fleet ?? (await faultFleet(env));
    const run: RunOptions = user === null ? {} : { under: user.under };
    const code = fileURLToPath(new URL("../../dist/", import.meta.url));
    onTestFinished(() => rmSync(join(code, "attack"), { force: true }));
    const tokens = join(fleet.folder, "tokens");
    const work = join(fleet.folder, "work");
    // Names as people give them: with a space, a colon and a newline.
    const [bound, readable] = [join(fleet.folder, "for alice:\nhere"), join(fleet.folder, "tools of all")];
    env.COPILOTFLEET_SANDBOX_BINDS = `${bound.replace("alice", "{user}")},${readable}:ro`;
    Object.assign(fleet.env, env);
    for (const folder of [tokens, work, bound, readable]) {
      mkdirSync(folder);
      if (user !== null) chownSync(folder, user.uid, user.uid);
    }
    for (const file of [join(tokens, "bob"), join(readable, "file")]) {
      writeFileSync(file, "token of bob");
      if (user !== null) chownSync(file, user.uid, user.uid);
    }
    mkdirSync(fleet.env.HOME ?? "", { recursive: true });
    await fleet.ok(["spawn", "--user", "bob"], run);
    await fleet.ok(["create", "--user", "bob", "--id", "of-bob", "--prompt", "a word of bob"], run);
    await fleet.ok(["spawn", "--user", "alice", "--cwd", work], run);
    await fleet.ok(["create", "--user", "alice", "--id", "of-alice"], run);
    const { servers } = await fleet.json<{ servers: ServerView[] }>(["ps"], run);
    const of = (user: string) => servers.find((server) => server.user === user);
    const [alice, bob] = [of("alice"), of("bob")];
    const { sandbox = NO_SANDBOX } = alice ?? {};
    expect(sandbox.mode).toBe(mode);
    const socket = await listen(join(fleet.folder, "socket"), user?.uid ?? 0);
    const bobHome = bob?.home ?? "";
    const serving = await serve(fleet, run);
    const variables = {
      state: fleet.root,
      bobHome,
      own: String(alice?.pid),
      bob: String(bob?.pid),
      serve: String(serving.pid),
      tokens,
      bound,
      readable,
      account: fleet.env.HOME ?? "",
      node: fleet.node,
      command: join(code, "..", "bin", "run.js"),
      code,
      socket,
      bobPort: String(bob?.port),
      memory: shared("--shmem", ["64"], run),
      queue: shared("--queue", [], run),
    };
    expect(await succeeding(fleet, NEEDS, variables, run)).toEqual(Object.keys(NEEDS));
    expect(await succeeding(fleet, ATTACKS, variables, run)).toEqual(mode === "none" ? Object.keys(ATTACKS) : []);
    const scripts = Object.fromEntries(Object.entries(LEFT_OPEN).map(([name, [, script]]) => [name, script]));
    const open = Object.keys(LEFT_OPEN).filter((name) => sandbox.not.includes(LEFT_OPEN[name]?.[0] ?? "files"));
    expect(await succeeding(fleet, scripts, variables, run)).toEqual(open);
    expect(existsSync(join(bobHome, "attack"))).toBe(mode === "none");
  },
);
