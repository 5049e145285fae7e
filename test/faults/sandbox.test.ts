import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { chownSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it, onTestFinished } from "vitest";
import { serverIdOf } from "../../src/base/ids.js";
import { NO_SANDBOX, type SandboxMode } from "../../src/base/sandbox.js";
import { homeOf } from "../../src/runtime/files/server-folder.js";
import { machineProgram } from "../../src/sandbox/programs.js";
import type { ServerView } from "../../src/servers/server.js";
import type { RunOptions } from "../fixtures/commands/command.js";
import { eventually } from "../fixtures/eventually.js";
import type { FaultFleet } from "../fixtures/fleets/fault-fleet.js";
import { serve } from "../fixtures/fleets/serve.js";
import { fleetAs } from "../fixtures/fleets/user-fleet.js";
import { startToolModel } from "../fixtures/models/tool-model.js";
import {
  ATTACKS,
  type Attack,
  CLEANING,
  CONNECT,
  MAKE_OBJECTS,
  MQ_OPEN,
  PREPARATION,
} from "../fixtures/programs/attacks.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";
import { networkProblem } from "../fixtures/programs/network.js";
import { without } from "../fixtures/programs/seccomp.js";

/** Work that the agent may do in its own sandbox. */
const NEEDS = {
  "writes to its home": 'echo work > "$HOME/work"',
  "writes to its temporary folder": 'echo work > "$(mktemp)"',
  "runs programs of the system": "git --version && grep -q root /etc/passwd",
  "signals its own processes": "sleep 60 & kill $!",
  "writes to its working folder": 'echo work > "$PWD/work"',
  "writes to the folder of sandbox.binds": 'echo work > "$bound/work"',
  "reads a folder that it may only read": 'cat "$readable/file"',
  "uses devices": "head -c 1 /dev/urandom > /dev/null",
} as const;

type Script = Pick<Attack, "script"> & { arguments: string };

/** Runs each script in alice's agent, and returns the names of those that succeeded. */
async function succeeding(
  fleet: FaultFleet,
  scripts: Record<string, Script>,
  variables: Record<string, string>,
  run: RunOptions,
): Promise<string[]> {
  const home = homeOf(fleet.root, serverIdOf("alice"));
  const lines = Object.entries(variables).map(([name, value]) => `export ${name}='${value}'`);
  const tries = Object.values(scripts).map(
    ({ script, ...given }, index) =>
      `( set -- ${given.arguments}; ${script} ) >/dev/null 2>&1 && echo ${index} >> "$HOME/result"`,
  );
  // The model calls the tool twice. The second call must not run the scripts again.
  const begin = '[ -e "$HOME/result" ] && exit 0; : > "$HOME/result"';
  writeFileSync(
    join(home, "attack.sh"),
    [begin, ...lines, PREPARATION, ...tries, CLEANING, 'echo over >> "$HOME/result"'].join("\n"),
  );
  rmSync(join(home, "result"), { force: true });
  const call = { command: `bash '${join(home, "attack.sh")}'`, description: "works" };
  await fleet.ok(["send", "of-alice", `!tool bash ${JSON.stringify(call)}`, "--user", "alice"], run);
  // The tool may return before the command ends, so wait for the end of the results.
  const words = await eventually("the attacks are over", () => {
    const words = readFileSync(join(home, "result"), "utf8").split("\n").filter(Boolean);
    return words.at(-1) === "over" && words;
  });
  return Object.keys(scripts).filter((_, index) => words.includes(String(index)));
}

/** Listens on a Unix socket, which belongs to `uid` unless that is null. @returns the path of the socket */
async function listen(path: string, uid: number | null): Promise<string> {
  const server = createServer().listen(path);
  onTestFinished(() => void server.close());
  await once(server, "listening");
  if (uid !== null) chownSync(path, uid, uid);
  return path;
}

/** Kernel objects that all processes of an operating-system account share. */
interface Objects {
  memory: string;
  queue: string;
  semaphore: string;
  posixQueue: string;
  mqOpen: string;
  /** POSIX shared memory. */
  sharedFile: string;
}

function makeObjects({ under = [] }: RunOptions): Objects {
  const posixQueue = `copilotfleet-${process.pid}`;
  const sharedFile = `/dev/shm/${posixQueue}`;
  const run = (program: string, ...args: string[]) => {
    const [first = "", ...rest] = [...under, program, ...args];
    return execFileSync(first, rest, { encoding: "utf8" });
  };
  const call = (number: number) => run("perl", "-e", `$name = "${posixQueue}"; syscall(${number}, $name, 66, 0600, 0)`);
  onTestFinished(() => void call(MQ_OPEN + 1));
  call(MQ_OPEN);
  const made = run("bash", "-c", `echo word > "${sharedFile}"; ${MAKE_OBJECTS}`);
  onTestFinished(() => rmSync(sharedFile));
  const [memory, queue, semaphore] = made.match(/\d+/g) ?? [];
  if (memory === undefined || queue === undefined || semaphore === undefined) throw new Error(`made only ${made}`);
  onTestFinished(() => void run("ipcrm", "--shmem-id", memory, "--queue-id", queue, "--semaphore-id", semaphore));
  return { memory, queue, semaphore, posixQueue, mqOpen: `${MQ_OPEN}`, sharedFile };
}

const KEY = "sk-the-key-of-the-provider";
const backwards = (text: string) => [...text].reverse().join("");

interface Case {
  mode: SandboxMode;
  as: "root" | "an ordinary user";
  /** A system call that the machine lacks, so that the fleet falls back to a weaker sandbox. */
  lacking?: "seccomp" | "landlock_create_ruleset";
  /** Whether the network is restricted and the server has limits. */
  restricted?: true;
}

const RESTRICTED = {
  COPILOTFLEET_SANDBOX_NETWORK: "none",
  COPILOTFLEET_SANDBOX_MEMORY: "1gb",
  COPILOTFLEET_SANDBOX_PROCESSES: "200",
  COPILOTFLEET_SANDBOX_OPEN_FILES: "1024",
  COPILOTFLEET_SANDBOX_CPU: "1",
  COPILOTFLEET_SANDBOX_DISK: "1gb",
};

/** For each column of the table in docs/security.md: the numbers of the rows in which the agent succeeds. */
const TABLE = (() => {
  const text = readFileSync(new URL("../../docs/security.md", import.meta.url), "utf8");
  const header =
    /^\| #\s*\|.*$/m
      .exec(text)?.[0]
      .split("|")
      .map((cell) => cell.trim().replaceAll("`", "")) ?? [];
  const rows = [...text.matchAll(/^\| \d+\s*\|.*$/gm)].map(([row]) => row.split("|").map((cell) => cell.trim()));
  expect(rows).toHaveLength(16);
  return new Map(
    header.map((name, at) => [name, rows.filter((row) => row[at]?.startsWith("yes")).map((row) => Number(row[1]))]),
  );
})();

function nameOf({ mode, as, lacking, restricted }: Case): string {
  return `${columnOf({ mode, restricted })} of ${as}${lacking === undefined ? "" : ` on a machine without ${lacking}`}`;
}

function columnOf({ mode, restricted }: { mode: SandboxMode; restricted: true | undefined }): string {
  return restricted ? `${mode}, restricted` : mode;
}

const ROOT = process.getuid?.() === 0;
const CASES: Case[] = [
  { mode: "landlock", as: "an ordinary user" },
  ...(networkProblem === undefined ? [{ mode: "landlock", as: "an ordinary user", restricted: true } as const] : []),
  ...(bwrapProblem === undefined
    ? (["root", "an ordinary user"] as const).map((as) => ({ mode: "bwrap", as }) as const)
    : []),
  ...(bwrapProblem === undefined && networkProblem === undefined
    ? [{ mode: "bwrap", as: "an ordinary user", restricted: true } as const]
    : []),
  ...(machineProgram("setpriv") === null
    ? []
    : [{ mode: "landlock", as: "an ordinary user", lacking: "seccomp" } as const]),
  ...(bwrapProblem === undefined ? ([{ mode: "bwrap", as: "root", lacking: "landlock_create_ruleset" }] as const) : []),
  { mode: "none", as: "root" },
  { mode: "none", as: "an ordinary user" },
];

it.skipIf(!ROOT).each(CASES.map((each) => ({ ...each, name: nameOf(each) })))(
  "in sandbox $name, an agent with a shell does only the damage that the server's record reports as possible",
  async ({ mode, as, lacking, restricted }) => {
    await using model = await startToolModel();
    const env: NodeJS.ProcessEnv = {
      ...model.env,
      COPILOTFLEET_SANDBOX_MODE: mode,
      COPILOTFLEET_PROVIDER_API_KEY: '{"env":"MODEL_KEY"}',
      MODEL_KEY: KEY,
      // No server listens at this address. Without the setting, a runtime with a token would connect to GitHub.
      COPILOT_API_URL: "http://127.0.0.1:9",
      COPILOT_DEBUG_GITHUB_API_URL: "http://127.0.0.1:9",
      ...(restricted ? RESTRICTED : {}),
    };
    const { fleet, user } = await fleetAs(as, env);
    const under = [...(lacking === undefined ? [] : without([lacking], fleet.folder)), ...(user?.under ?? [])];
    const run: RunOptions = { under };
    const code = fileURLToPath(new URL("../../", import.meta.url)).replace(/\/$/, "");
    onTestFinished(() => rmSync(join(code, "attack"), { force: true }));
    const tokens = join(fleet.folder, "tokens");
    const work = join(fleet.folder, "work");
    // Use folder names with a space, a colon and a newline, because people give such names.
    const [bound, readable] = [join(fleet.folder, "for alice:\nhere"), join(fleet.folder, "tools of all")];
    env.COPILOTFLEET_AUTH_GITHUB_TOKEN_FILE = join(tokens, "{user}");
    env.COPILOTFLEET_SANDBOX_BINDS = `${bound.replace("alice", "{user}")},${[readable, code, fleet.node].map((path) => `${path}:ro`).join(",")}`;
    Object.assign(fleet.env, env);
    for (const folder of [tokens, work, bound, readable]) {
      mkdirSync(folder);
      if (user !== null) chownSync(folder, user.uid, user.uid);
    }
    for (const [file, text] of [
      [join(tokens, "alice"), "gho_tokenofalice"],
      [join(tokens, "bob"), "gho_tokenofbob"],
      [join(readable, "file"), "a file"],
    ] as const) {
      writeFileSync(file, text, { mode: 0o600 });
      if (user !== null) chownSync(file, user.uid, user.uid);
    }
    mkdirSync(fleet.env.HOME ?? "", { recursive: true });
    await fleet.ok(["spawn", "--user", "bob"], run);
    await fleet.ok(["create", "--user", "bob", "--id", "of-bob", "--prompt", "a word of bob"], run);
    // Start serve before alice's server, so that the PID of serve is lower than that of her bwrap. The sandbox numbers
    // her processes from bwrap's outer PID upwards, so none of them has the PID of serve.
    const serving = await serve(fleet, run);
    await fleet.ok(["spawn", "--user", "alice", "--cwd", work], run);
    await fleet.ok(["create", "--user", "alice", "--id", "of-alice", "--prompt", "a word of alice"], run);
    const { servers } = await fleet.json<{ servers: ServerView[] }>(["ps"], run);
    const of = (user: string) => servers.find((server) => server.user === user);
    const [alice, bob] = [of("alice"), of("bob")];
    const { sandbox = NO_SANDBOX } = alice ?? {};
    expect(sandbox.mode).toBe(mode);
    const socket = await listen(join(fleet.folder, "socket"), user?.uid ?? 0);
    await listen(join(bound, "socket"), user?.uid ?? 0);
    // Use a name of the full length, because Node.js 20 pads a shorter name with zero bytes.
    const abstractSocket = await listen(`\0copilotfleet-${process.pid}`.padEnd(108, "-"), null);
    const bobHome = bob?.home ?? "";
    const variables = {
      state: fleet.root,
      bobHome,
      bob: String(bob?.pid),
      serve: String(serving.pid),
      tokens,
      bound,
      readable,
      account: fleet.env.HOME ?? "",
      node: fleet.node,
      command: join(code, "bin", "run.js"),
      code,
      socket,
      abstractSocket: abstractSocket.slice(1),
      alicePort: String(alice?.port),
      bobPort: String(bob?.port),
      githubBackwards: backwards("gho_tokenofalice"),
      keyBackwards: backwards(KEY),
      ...makeObjects(run),
    };
    const attacks = Object.entries(ATTACKS);
    const scriptsOf = (whose: "own" | "foreign"): Record<string, Script> =>
      Object.fromEntries(attacks.map(([name, attack]) => [name, { ...attack, arguments: attack[whose] }]));
    const needs = Object.fromEntries(Object.entries(NEEDS).map(([name, script]) => [name, { script, arguments: "" }]));
    const allowed = { ...needs, ...scriptsOf("own") };
    if (mode === "landlock" && !sandbox.not.includes("unix-sockets"))
      for (const [name] of attacks.filter(([, { script }]) => script === CONNECT)) delete allowed[name];
    expect(await succeeding(fleet, allowed, variables, run)).toEqual(Object.keys(allowed));
    const left = attacks.filter(([, { open, needsRoot, limit }]) => {
      if (needsRoot && as !== "root") return false;
      if (limit !== undefined && (sandbox.limits?.[limit] ?? null) !== null) return false;
      return open === undefined
        ? mode === "none"
        : open !== "never" && open.every((word) => sandbox.not.includes(word));
    });
    const succeeded = await succeeding(fleet, scriptsOf("foreign"), variables, run);
    expect(succeeded).toEqual(left.map(([name]) => name));
    if (as !== "root" && lacking === undefined) {
      const rows = succeeded.flatMap((name) => ATTACKS[name]?.row ?? []);
      expect([...new Set(rows)].sort((a, b) => a - b)).toEqual(TABLE.get(columnOf({ mode, restricted })));
    }
    expect(existsSync(join(bobHome, "attack"))).toBe(mode === "none");
  },
);
