import { appendFileSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { beforeAll, describe, expect, it } from "vitest";
import type { CommandSnapshot } from "../../scripts/schemas/commands.js";
import { quote } from "../../src/base/errors.js";
import { keysBelow, keyTree } from "../../src/config/keys.js";
import { RAW, testFleet } from "../fixtures/commands/cli.js";
import { runInProcess } from "../fixtures/commands/in-process.js";
import { faultsOf } from "../fixtures/commands/typed-commands.js";

/** To read all messages, set this variable to the path of a file. The test appends them to it. */
const OUTPUT = process.env.WRONG_INPUTS_OUTPUT;
/** The most lines that an error may have: its message and the next steps. */
const MOST_LINES = 8;

interface Wrong {
  args: readonly string[];
  /** The flag, argument, key, variable, file or command that the message has to name. */
  names: string;
  /** The value that the message has to quote. */
  value?: string;
  env?: NodeJS.ProcessEnv;
  exit?: number;
}

const COMMANDS = JSON.parse(
  readFileSync(fileURLToPath(new URL("../../schemas/commands.json", import.meta.url)), "utf8"),
) as Record<string, CommandSnapshot>;

const fleet = testFleet({
  COPILOTFLEET_PROVIDER_TYPE: undefined,
  COPILOTFLEET_PORTS_FROM: undefined,
  COPILOTFLEET_PORTS_TO: undefined,
});
const files = join(fleet.folder, "files");
let before = "";
beforeAll(() => {
  mkdirSync(join(fleet.folder, "home"));
  mkdirSync(join(files, "folder"), { recursive: true });
  for (const { name } of KEYS) writeFileSync(fileOf(name), JSON.stringify(nested(name.split("."), { a: 1 })));
  writeFileSync(join(files, "unknown.json"), '{"isolatoin": "shared"}');
  writeFileSync(join(files, "far.json"), '{"a": 1}');
  writeFileSync(join(files, "deep.json"), '{"session": {"tll": "1h"}}');
  writeFileSync(join(files, "list.json"), "[]");
  writeFileSync(join(files, "empty.json"), "");
  writeFileSync(join(files, "comma.json"), '{"isolation": "shared",}');
  writeFileSync(join(files, "secret.json"), '{"provider": {"apiKey": "canary"}}');
  writeFileSync(join(files, "order.json"), '{"ports": {"from": 6000, "to": 5000}}');
  writeFileSync(join(files, "unit.json"), '{"session": {"ttl": 3600}}');
  writeFileSync(join(files, "token"), "not-a-token\n", { mode: 0o644 });
  before = tree();
});

/** All files and folders of this fleet, with the times of their last changes. */
function tree(): string {
  const entries = readdirSync(fleet.folder, { recursive: true, encoding: "utf8" }).toSorted();
  return entries.map((entry) => `${entry} ${statSync(join(fleet.folder, entry)).mtimeMs}`).join("\n");
}

const KEYS = [...keysBelow(keyTree())];
/** The keys that do not accept every text. The other keys are sections, paths, commands, and lists of any texts. */
const STRICT_KEYS = KEYS.filter(
  ({ name, kind, rule }) =>
    kind !== "section" && rule?.path === undefined && !/Command$|^runtime.args$|^session.tools$/.test(name),
);

function fileOf(key: string): string {
  return join(files, `${key}.json`);
}

function nested([first = "", ...rest]: readonly string[], value: unknown): object {
  return { [first]: rest.length === 0 ? value : nested(rest, value) };
}

const USER = ["--user", "alice"];
/** A word that is not a valid id, duration, size, number, choice or address. */
const NONSENSE = "no/such value";

const BAD_USERS = [
  ...["", " ", "..", ".hidden", "../../etc", "a/b", "a\\b", "a b", "-x", "%2e%2e", "a*", "$(id)", "a:b"],
  ...["a\nb", "a\u001b[31mb", "a\u202eb", "a\u200bb", "\u0301a", "__proto__", "constructor", "prototype"],
  ...["a".repeat(129), "é".repeat(65)],
];
const BAD_SESSIONS = [
  ...["", " ", ".", "..", "../s", "a b", "a/b", "a\nb", "\u001b[31m", "é", "__proto__", "constructor", "a".repeat(129)],
];
const BAD_DURATIONS = [
  ...["", "0", "0s", "5", "soon", "-1s", "1y", "1.5", "5 parsecs", "400d1y", "NaN", "Infinity", "1e3s", "5\u001bs"],
];
const BAD_NUMBERS = ["", "0", "-1", "1.5", "1e1", " 1", "many", "1001", "9999999999", "0x10"];

const DURATIONS: readonly [args: readonly string[], flag: string][] = [
  [["create", ...USER], "--ttl"],
  [["create", ...USER], "--wait"],
  [["send", "s", "t", ...USER], "--timeout"],
  [["send", "s", "t", ...USER], "--wait"],
  [["resume", "s", ...USER], "--wait"],
  [["lock", "s", ...USER], "--ttl"],
  [["lock", "s", ...USER], "--wait"],
  [["spawn", ...USER], "--wait"],
  [["stop", "a"], "--drain-timeout"],
  [["restart", "a"], "--drain-timeout"],
  [["drain"], "--drain-timeout"],
  [["serve"], "--drain-timeout"],
  [["gc"], "--ttl"],
  [["token", "issue", ...USER], "--ttl"],
  [["token", "rotate", "a"], "--overlap"],
];
const NUMBERS: readonly [args: readonly string[], flag: string][] = [
  [["spawn", ...USER], "--count"],
  [["logs", "a"], "--lines"],
  [["list"], "--limit"],
  [["ps"], "--limit"],
  [["token", "list"], "--limit"],
  [["evict"], "--max"],
  [["transcript", "s", ...USER], "--turns"],
  [["restart", "--all", "--rolling"], "--max-unavailable"],
  [["deploy", "kubernetes"], "--replicas"],
  [["deploy", "kubernetes"], "--egress-port"],
  [["deploy", "compose"], "--servers"],
];
const CHOICES: readonly [args: readonly string[], flag: string][] = [
  [["list"], "--state"],
  [["list"], "--output"],
  [["list"], "--sort"],
  [["ps"], "--state"],
  [["ps"], "--output"],
  [["ps"], "--sort"],
  [["token", "list"], "--output"],
  [["route", ...USER], "--strategy"],
  [["init", "--yes"], "--provider"],
  [["init", "--yes"], "--isolation"],
  [["deploy", "kubernetes"], "--storage"],
  [["deploy", "kubernetes"], "--namespace"],
  [["deploy", "kubernetes"], "--name"],
  [["deploy", "kubernetes"], "--image"],
  [["deploy", "kubernetes"], "--storage-size"],
  [["deploy", "systemd"], "--command"],
  [["deploy", "systemd"], "--run-as"],
  [["store", "migrate"], "--to"],
  [["logs", "a"], "--since"],
  [["spawn", ...USER], "--cwd"],
];

/** All inputs that have to be refused, in groups. */
const WRONG: Readonly<Record<string, readonly Wrong[]>> = {
  "a command that does not exist": [
    ...["spwan", "lst", "", "Ps", "-x", "42", "run", "kill", "login", "token:issue", "é"].map((word) => [word]),
    ["token", "isue"],
    ["store", "x"],
    ["config", "show2"],
    ["deploy", "docker"],
    ["help", "nothing"],
  ].map((args) => {
    const word = args[0] === "help" ? args.slice(1) : args;
    return { args, names: "command", value: word.join(" ") };
  }),
  "a flag that does not exist": Object.keys(COMMANDS).map((command) => ({
    args: [...command.split(" "), "--nonsense"],
    names: "--nonsense",
  })),
  "a flag without its value": [
    ...new Map(
      Object.entries(COMMANDS).flatMap(([command, { flags }]) =>
        Object.entries(flags)
          .filter(([, { type }]) => type === "option")
          .map(([flag]) => [flag, { args: [...command.split(" "), `--${flag}`], names: `--${flag}` }] as const),
      ),
    ).values(),
  ],
  "too many arguments": Object.entries(COMMANDS)
    .filter(([command, { args = [], strict = true }]) => strict && args.length === 0 && command !== "help")
    .map(([command]) => ({ args: [...command.split(" "), "surplus"], names: "argument", value: "surplus" })),
  "a user id": [
    ...BAD_USERS.map((value) => ({ args: ["spawn", `--user=${value}`], names: "--user", value })),
    { args: ["create", "-u", "a b"], names: "--user", value: "a b" },
    { args: ["list", "--user", "a/b"], names: "--user", value: "a/b" },
  ],
  "a session id": [
    ...BAD_SESSIONS.map((value) => ({ args: ["create", ...USER, `--id=${value}`], names: "--id", value })),
    { args: ["send", "a b", "text", ...USER], names: "SESSION", value: "a b" },
    ...BAD_SESSIONS.map((value) => ({ args: ["resume", ...USER, "--", value], names: "SESSION", value })),
    { args: ["delete", "good", "a/b"], names: "SESSION", value: "a/b" },
  ],
  "a duration": DURATIONS.flatMap(([args, flag], at) =>
    (at === 0 ? BAD_DURATIONS : ["5", "soon"]).map((value) => ({
      args: [...args, `${flag}=${value}`],
      names: flag,
      value,
    })),
  ),
  "a number": NUMBERS.flatMap(([args, flag], at) =>
    (at === 0 ? BAD_NUMBERS : ["-1", "many"]).map((value) => ({
      args: [...args, `${flag}=${value}`],
      names: flag,
      value,
    })),
  ),
  "a choice": CHOICES.map(([args, flag]) => ({ args: [...args, flag, NONSENSE], names: flag, value: NONSENSE })),
  "a combination of flags": [
    { args: ["spawn"], names: "--user" },
    { args: ["spawn", ...USER, "--shared"], names: "--shared" },
    { args: ["spawn", "--shared", "--count", "2"], names: "--count" },
    { args: ["spawn", ...USER, "--token-env", "X", "--token-file", "y"], names: "--token-env" },
    { args: ["stop"], names: "--all" },
    { args: ["stop", "a", "--all"], names: "--all" },
    { args: ["stop", "a", "--force", "--drain-timeout", "3s"], names: "--force" },
    { args: ["logs"], names: "--user" },
    { args: ["logs", "a", "--all"], names: "--all" },
    { args: ["evict"], names: "--max" },
    { args: ["lock", "s", ...USER, "--steal"], names: "--reason" },
    { args: ["lock", "s", ...USER, "--show", "--steal"], names: "--show" },
    { args: ["lock", "s", ...USER, "--"], names: "--" },
    { args: ["unlock", "s"], names: "--token" },
    { args: ["unlock", "s", "--token", " "], names: "--token" },
    { args: ["route"], names: "--user" },
    { args: ["ps", "--quiet", "--output", "wide"], names: "--quiet" },
    { args: ["list", "--watch", "--output", "csv"], names: "--watch" },
    { args: ["create", ...USER, "--prompt", " "], names: "--prompt", value: " " },
    { args: ["create", ...USER, "--member", "bob"], names: "--member" },
    { args: ["create", ...USER, "--model", ""], names: "--model", value: "" },
    { args: ["send", "s", " ", ...USER], names: "prompt" },
    { args: ["store", "migrate"], names: "--to" },
    { args: ["store", "migrate", "--to", "file"], names: "store" },
    { args: ["token", "revoke"], names: "--user" },
    { args: ["token", "revoke", "Not-An-Id"], names: "token", value: "Not-An-Id" },
    { args: ["deploy", "kubernetes", "--replicas", "3"], names: "--replicas 3" },
    { args: ["chat", ...USER, "--to", "localhost"], names: "--to" },
    { args: ["trust", "--list", "--revoke", "x"], names: "--list" },
    { args: ["explain", "FLEET_NOTHING"], names: "error code", value: "FLEET_NOTHING" },
    { args: ["config", "get", "isolatoin"], names: "isolatoin", value: "isolatoin" },
  ],
  "a file or a variable": [
    ...["missing.json", "folder"].map((name) => ({ args: ["ps", "--config", name], names: name, exit: 3 })),
    ...["unknown", "far", "deep", "list", "empty", "comma", "secret", "order", "unit"].map((name) => ({
      args: ["ps", "--config", join(files, `${name}.json`)],
      names: `${name}.json`,
      exit: 3,
    })),
    { args: ["spawn", ...USER, "--token-env", "NOT_SET"], names: "NOT_SET", exit: 3 },
    { args: ["unlock", "s", "--token-env", "NOT_SET"], names: "--token-env", exit: 3 },
    { args: ["spawn", ...USER, "--token-env", "1X"], names: "--token-env" },
    { args: ["spawn", ...USER, "--token-file", "missing"], names: "missing", exit: 3 },
    { args: ["spawn", ...USER, "--token-file", join(files, "token")], names: "token", exit: 3 },
    { args: ["spawn", ...USER, "--cwd", "missing"], names: "--cwd", value: "missing" },
    { args: ["trust", "missing"], names: "missing", value: "missing" },
    { args: ["create"], env: { COPILOTFLEET_USER: "a b" }, names: "COPILOTFLEET_USER", value: "a b", exit: 3 },
  ],
  "a key of a file": KEYS.map(({ name }) => ({ args: ["ps", "--config", fileOf(name)], names: name, exit: 3 })),
  "a variable for a key": STRICT_KEYS.map(({ variable }) => ({
    args: ["ps"],
    env: { [variable]: "no/such value, \u0007" },
    names: variable,
    exit: 3,
  })),
  "a thing that does not exist": [
    { args: ["stop", "nosuch"], names: "nosuch", value: "nosuch", exit: 4 },
    { args: ["restart", "nosuch"], names: "nosuch", value: "nosuch", exit: 4 },
    { args: ["logs", "nosuch"], names: "nosuch", value: "nosuch", exit: 4 },
    { args: ["drain", "nosuch"], names: "nosuch", value: "nosuch", exit: 4 },
    { args: ["describe", "nosuch"], names: "nosuch", value: "nosuch", exit: 4 },
    { args: ["delete", "nosuch"], names: "nosuch", value: "nosuch", exit: 4 },
    { args: ["evict", "nosuch"], names: "nosuch", value: "nosuch", exit: 4 },
    { args: ["lock", "nosuch", "--show"], names: "nosuch", value: "nosuch", exit: 4 },
    { args: ["transcript", "nosuch", ...USER], names: "nosuch", value: "nosuch", exit: 4 },
  ],
};

/** Matches an error that states what is allowed, or what is wrong if no other value would help. */
const STATES =
  /Allowed: |There is no |\bGive |\bSay |\bneeds |missing|cannot be |needs a value|Unexpected argument|nearest is|not found|no server|not (an existing|set|the id|found|JSON|exist)|does not exist|must|empty|already|only|is not a|counts|takes no arguments/;

/** A variable would replace the wrong value of the file. */
const { COPILOTFLEET_SANDBOX_NETWORK: _, ...withoutNetwork } = fleet.env;

describe.each(Object.entries(WRONG))("wrong input: %s", (group, inputs) => {
  it.each(inputs.map((input) => [describeInput(input), input] as const))(
    "%s is refused, and changes nothing",
    async (line, input) => {
      const { args, names, value, env, exit = 2 } = input;
      const ran = await runInProcess(args, { env: { ...withoutNetwork, ...env }, cwd: files });
      if (OUTPUT !== undefined)
        appendFileSync(OUTPUT, `# ${group}\n$ ${line}\n${ran.stdout}${ran.stderr}[exit code ${ran.code}]\n\n`);
      const [error = "", ...advice] = (ran.stderr || ran.stdout).trimEnd().split("\n");
      expect({ code: ran.code, error, advice }).toMatchObject({ code: exit });
      const json = args.includes("--json");
      const { message, suggestions } = json ? JSON.parse(ran.stdout).error : readText(error, advice);
      expect(message).toContain(names);
      if (value !== undefined) expect(message).toContain(quote(value));
      expect([message, ...suggestions].join("\n")).toMatch(STATES);
      expect(suggestions.length, `suggestions: ${message}`).toBeGreaterThan(0);
      // A suggestion of --help alone is enough only if the flag or command does not exist.
      if (!group.endsWith("that does not exist"))
        expect(suggestions.filter((text: string) => !text.endsWith(" --help"))).not.toEqual([]);
      if (group === "a flag without its value") expect(message).toContain("needs a value. Allowed: ");
      if (group === "a number")
        expect(message).toMatch(/", which is (?:empty|less|more|not) .*\. Allowed: |", which is empty/);
      if (group === "a duration") expect(message).toMatch(/", which (?:is |has no unit)/);
      expect(suggestions.join("\n")).not.toMatch(/Did you mean "?\d|#/);
      expect(suggestions.flatMap(refusedParts)).toEqual([]);
      expect(advice.length).toBeLessThan(MOST_LINES);
      expect(ran.stdout + ran.stderr).not.toMatch(/^ +at |node:internal|canary/m);
      expect(ran.stdout + ran.stderr).not.toMatch(RAW);
      expect(tree()).toBe(before);
    },
  );
});

/** Returns the parts of a suggestion that the command line would refuse. Missing arguments and flags do not count. */
function refusedParts(suggestion: string): string[] {
  return faultsOf(suggestion.replace(/ (--help|-h)$/, "")).filter((fault) => !fault.includes(" needs "));
}

function readText(error: string, advice: readonly string[]): { message: string; suggestions: string[] } {
  const [, message = ""] = /^Error: (.*[.?!…]) \[FLEET_[A-Z_]+\]$/.exec(error) ?? [];
  const suggestions = advice.map((text) => /^ {2}(?:Try(?: \([^()]+\))?|Hint): ([^#]+)$/.exec(text)?.[1]);
  expect({ error, advice, suggestions }).toEqual({
    error: expect.stringMatching(/^Error: .+[.?!…] \[FLEET_[A-Z_]+\]$/),
    advice,
    suggestions: suggestions.map(() => expect.any(String)),
  });
  return { message, suggestions: suggestions.filter((text) => text !== undefined) };
}

function describeInput({ args, env = {} }: Wrong): string {
  const variables = Object.entries(env).map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  const words = args.map((word) =>
    (/^[\w=./:-]+$/.test(word) ? word : JSON.stringify(word)).replace(fleet.folder, "FOLDER"),
  );
  return [...variables, "copilotfleet", ...words].join(" ");
}
