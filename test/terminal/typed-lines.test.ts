import { type ChildProcess, spawn } from "node:child_process";
import { chmodSync, copyFileSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { blocksOf, ROOT } from "../docs/blocks.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { eventually } from "../fixtures/eventually.js";
import { testPorts } from "../fixtures/fleets/ports.js";

/**
 * Types each example of the help, and each command line in the text of README.md and docs/commands.md, as a person
 * does: in a new process, once with a pipe and once on a terminal. test/docs/blocks.test.ts runs the blocks of the
 * documents.
 */

const [door, metrics, http, closed] = Array.from({ length: 4 }, () => `127.0.0.1:${testPorts(1).from}`);
const fleet = testFleet({
  COPILOTFLEET_SERVE_LISTEN: door,
  COPILOTFLEET_SERVE_METRICS: metrics,
  COPILOTFLEET_HOST_NAME: "h1",
  ALICE_GITHUB_TOKEN: "none",
  FLEET_TOKEN: "cft_0123456789abcdef_none",
  MODELS_KEY: "none",
  REDIS_URL: `redis://${closed}/0`,
});
const BIN = join(fleet.folder, "bin");
const ARCHIVE = join(fleet.folder, "review.tar.gz");

/** Programs in the lines other than the command. */
const STAND_INS = { kubectl: "cat >/dev/null", fish: "cat >/dev/null", git: "echo a difference" };

/** The parts of lines that would leave this machine or the test's folder, or take long, and what replaces them. */
const REPLACED: readonly (readonly [string, string])[] = [
  ["fleet.example:4300", closed ?? ""],
  ["--to redis://127.0.0.1:6379/0", `--to redis://${closed}/0`],
  ["--to rediss://redis.example:6379/0", `--to rediss://${closed}/0`],
  ["https://models.example/v1", `http://${closed}/v1`],
  ["127.0.0.1:4380", http ?? ""],
  ["--output /", "--output units"],
  ["--count 16", "--count 2"],
  ["./migrate.sh --all", "true"],
  ["alice-2bd806c97f0e", "$(copilotfleet ps -q --user alice)"],
  ["session/notes", "session/SESSION"],
  ["describe notes", "describe SESSION"],
  ["0123456789abcdef", "$id"],
  ["source <(copilotfleet autocomplete zsh)", "cat <(copilotfleet autocomplete zsh)"],
  ["| source", "| cat"],
  ["--model m-1", "--model m-1 --no-try"],
  ["NAME=KEY", `h1=${"A".repeat(43)}`],
  ["host-2=KEY", `host-2=${"A".repeat(43)}`],
  ["--token-env TOKEN", "--token-env token"],
  ["help COMMAND", "help create"],
  ["explain CODE", "explain FLEET_INTERNAL"],
];

/** Shell commands that some lines need before or after them. */
const AROUND: readonly { line: RegExp; before?: string; after?: string }[] = [
  { line: /^copilotfleet delete /, before: "copilotfleet create --user alice --id SESSION >/dev/null 2>&1 || true" },
  { line: / lock SESSION .*--ttl/, after: 'copilotfleet unlock SESSION --token "$token"' },
  { line: / unlock /, before: 'export token="$(copilotfleet lock SESSION --user alice)"' },
  { line: /\$id/, before: "id=$(copilotfleet token issue --user alice | cut -d_ -f2)" },
  { line: / import .*bob$/, after: "copilotfleet delete review --yes" },
  { line: / import .*--id/, after: "copilotfleet delete review-2 --yes" },
  { line: / (stop|drain --drain|user purge) /, after: "copilotfleet drain --undo" },
  { line: / user suspend /, after: "copilotfleet user resume alice" },
  { line: / user resume /, before: "copilotfleet user suspend alice" },
  { line: / drain$/, after: "copilotfleet drain --undo" },
  { line: / evict /, before: "copilotfleet send SESSION more --user alice" },
];

/** The exit codes of lines that a fleet on one host, without Redis and without `serve`, refuses. Others exit with 0. */
const REFUSED: readonly { line: RegExp; pipe: number; terminal: number }[] = [
  { line: /^copilotfleet (connect|stop|restart|logs|evict|token issue|limit show)$/, pipe: 2, terminal: 2 },
  { line: / chat --to /, pipe: 2, terminal: 7 },
  { line: / chat /, pipe: 2, terminal: 0 },
  { line: / init$/, pipe: 2, terminal: 130 },
  { line: / init --provider /, pipe: 0, terminal: 130 },
  { line: / (events|logs) .*-f\b/, pipe: 130, terminal: 130 },
  { line: / open /, pipe: 7, terminal: 7 },
  { line: / proxy .*--ca /, pipe: 3, terminal: 3 },
  { line: / (spawn .*--token-env) /, pipe: 5, terminal: 5 },
  { line: / store migrate .*(rediss?:|REDIS)/, pipe: 7, terminal: 7 },
  { line: / store (migrate --to file|sign)/, pipe: 2, terminal: 2 },
];

/** Lines that run until they are interrupted. They are well if they show the text, and if Ctrl-C then ends them. */
const ENDLESS: readonly { line: RegExp; shows: RegExp; only?: "terminal" }[] = [
  { line: / events -f/, shows: /zoe/ },
  { line: / logs .*-f/, shows: /Launch on port/ },
  { line: / serve\b/, shows: /Supervising \d+ servers?/ },
  { line: / proxy .*4300$/, shows: /127\.0\.0\.1:\d+/ },
  { line: / top( --sort .*)?$/, shows: /q: quit/, only: "terminal" },
  { line: / (chat|resume SESSION --user alice$)/, shows: /Ctrl-D|\/help/, only: "terminal" },
  { line: / init( --provider|$)/, shows: /\?|: $/, only: "terminal" },
];

/** Values for the placeholders in tables. */
const PLACEHOLDERS: Readonly<Record<string, string>> = {
  U: "alice",
  ID: "SESSION",
  NAME: "alice",
  SERVER: "alice",
  F: "file",
  FILE: "review.tar.gz",
  T: '"$token"',
  KEY: "session.ttl",
  CODE: "FLEET_INTERNAL",
  "HOST:PORT": "fleet.example:4300",
  STORE: "file",
};

function examples(): string[] {
  const { commands } = JSON.parse(readFileSync(join(ROOT, "oclif.manifest.json"), "utf8")) as {
    commands: Record<string, { examples?: string[] }>;
  };
  return Object.values(commands).flatMap(({ examples: lines = [] }) =>
    lines.map((line) => line.replaceAll("<%= config.bin %>", "copilotfleet")),
  );
}

/** The command lines in the text and in the first columns of the tables of a page, outside of its blocks. */
function linesIn(page: string): string[] {
  let text = readFileSync(join(ROOT, page), "utf8");
  for (const { text: block } of blocksOf(page)) text = text.replace(block, "");
  const cells = [...text.matchAll(/^\| (`.*?) +\| /gm)].flatMap(([, cell = ""]) => {
    const [whole = ""] = /(?<=^`)[^`]+/.exec(cell) ?? [];
    return whole.includes("\\|") || /^[-A-Z]/.test(whole) ? [] : [`copilotfleet ${withoutOptions(whole)}`];
  });
  return [...[...text.matchAll(/`(copilotfleet [^`]+)`/g)].map(([, line = ""]) => line), ...cells];
}

/** A line of a table without its optional parts, and with values in place of placeholders. */
function withoutOptions(line: string): string {
  return Object.entries(PLACEHOLDERS).reduce(
    (all, [word, value]) => all.replaceAll(new RegExp(`(?<= )${word}(?=$| |=)`, "g"), value),
    line.replaceAll(/ \[.*?\](?= |$)|…/g, ""),
  );
}

// The token of a bare `lock` would be lost, and the session locked. An example has the same line with the token in a
// variable.
const LINES = [...new Set([...examples(), ...linesIn("README.md"), ...linesIn("docs/commands.md")])].filter(
  (line) => line !== "copilotfleet lock SESSION --user alice",
);
/** Lines that only look, so several can run at once. */
const LOOKS =
  / (autocomplete|config|deploy|describe|doctor|events|explain|help|host|limit show|list|logs|open|ps|route|store|token list|transcript|trust|usage|user (list|export)|version)\b/;
/** Lines that leave the fleet without what other lines need. They come last. */
const ENDS = /^copilotfleet (delete|stop|drain|user purge|restart|gc)\b/;
const LOOKING = LINES.filter((line) => LOOKS.test(line) && !ENDS.test(line) && !/ (lock|doctor --fix)|-f\b/.test(line));
const OTHERS = LINES.filter((line) => !LOOKING.includes(line));
const ORDERED = [...OTHERS.filter((line) => !ENDS.test(line)), ...OTHERS.filter((line) => ENDS.test(line))];

const BUG = /\[FLEET_INTERNAL\]|"code": ?"FLEET_INTERNAL"|The following error occurred/;

let folders = 0;

/** The script for a line, and a new folder in which to run it. */
function typed(line: string): { script: string; cwd: string } {
  const cwd = join(fleet.folder, `cwd-${folders++}`);
  mkdirSync(cwd);
  if (/ import /.test(line)) copyFileSync(ARCHIVE, join(cwd, "review.tar.gz"));
  if (/ trust$/.test(line)) writeFileSync(join(cwd, ".copilotfleet.json"), "{}");
  const replaced = REPLACED.reduce((all, [from, to]) => all.replaceAll(from, to), line);
  const around = AROUND.find(({ line: pattern }) => pattern.test(replaced));
  const { before = "", after = "" } = around ?? {};
  if (around === undefined) return { script: replaced, cwd };
  return {
    script: `{ ${before || "true"}; } >/dev/null 2>&1\n${replaced}\nc=$?; { ${after || "true"}; } >/dev/null 2>&1; exit $c`,
    cwd,
  };
}

interface Shown {
  text: string;
  code: number | null;
}

/** Causes an event, which `events -f` shows, once the line shows something. */
async function provoke(): Promise<void> {
  await fleet.ok(["limit", "set", "--user", "zoe", "--turns-per-minute", "9"]);
}

async function inPipe(line: string): Promise<Shown> {
  const { script, cwd } = typed(line);
  const child: ChildProcess = spawn("bash", ["-c", script], { cwd, env: fleet.env, stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  for (const stream of [child.stdout, child.stderr])
    stream?.setEncoding("utf8").on("data", (piece: string) => {
      text += piece;
    });
  const done = new Promise<number | null>((resolve) => child.once("close", (code) => resolve(code)));
  const endless = ENDLESS.find(({ line: pattern, only }) => only === undefined && pattern.test(line));
  if (endless !== undefined) {
    await eventually(`output of ${line}`, () => text !== "" || child.exitCode !== null, 60_000);
    await provoke();
    await eventually(`${endless.shows} in ${text}`, () => endless.shows.test(text) || child.exitCode !== null, 60_000);
    child.kill("SIGINT");
  }
  return { code: await done, text };
}

async function onTerminal(line: string): Promise<Shown> {
  const { script, cwd } = typed(line);
  await using terminal = new Terminal(fleet, ["-c", script], { program: "bash", cwd, columns: 200 });
  let code: number | null | undefined;
  const done = terminal.done.then((end) => {
    code = end;
  });
  const endless = ENDLESS.find(({ line: pattern }) => pattern.test(line));
  const asks = /\[y\/N\] $/;
  const isShown = () => code !== undefined || asks.test(terminal.text) || (endless?.shows.test(terminal.text) ?? false);
  if (endless !== undefined && / events /.test(line)) {
    await eventually(`output of ${line}`, () => code !== undefined || terminal.text !== "", 60_000);
    await provoke();
  }
  await eventually(`the first effect of ${line}`, isShown, 60_000);
  if (asks.test(terminal.text)) terminal.type("y\n");
  if (endless !== undefined) terminal.type(/ (chat|resume) /.test(line) ? "\x04" : / top/.test(line) ? "q" : "\x03");
  await done;
  return { code: code ?? null, text: terminal.text };
}

beforeAll(async () => {
  mkdirSync(BIN);
  symlinkSync(join(ROOT, "bin/run.js"), join(BIN, "copilotfleet"));
  for (const [name, script] of Object.entries(STAND_INS)) {
    writeFileSync(join(BIN, name), `#!/bin/sh\n${script}\n`);
    chmodSync(join(BIN, name), 0o755);
  }
  fleet.env.PATH = `${BIN}${delimiter}${process.env.PATH}`;
  const work = join(fleet.folder, "home/work/app");
  mkdirSync(work, { recursive: true });
  writeFileSync(join(work, ".copilotfleet.json"), "{}");
  await fleet.create("alice", "review");
  await fleet.ok(["export", "review", "--user", "alice", "--output", ARCHIVE]);
  await fleet.ok(["delete", "review"]);
});
afterAll(async () => {
  await fleet.run(["drain", "--undo"]);
});

describe.each([
  ["pipe", inPipe],
  ["terminal", onTerminal],
] as const)("typed with a %s", (mode, run) => {
  const check = async (line: string) => {
    const { code, text } = await run(line);
    const wanted = REFUSED.find(({ line: pattern }) => pattern.test(line))?.[mode] ?? 0;
    expect({ code, text }, line).toEqual({ code: wanted, text: expect.not.stringMatching(BUG) });
  };

  beforeAll(async () => {
    await fleet.run(["drain", "--undo"]);
    await fleet.run(["delete", "--ignore-not-found", "SESSION"]);
    await fleet.ok(["create", "--user", "alice", "--id", "SESSION", "--prompt", "hi"]);
  });

  it.concurrent.each(LOOKING)("`%s` shows its effect, and ends as documented", { retry: 0 }, check);
  it.each(ORDERED)("`%s` shows its effect, and ends as documented", { retry: 0 }, check);
});
