import { mkdirSync, readdirSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { openStore } from "../../src/store/store.js";
import { has } from "../deploy/render.js";
import { TestFleet } from "../fixtures/commands/cli.js";
import { COMMAND } from "../fixtures/commands/command.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { dumped } from "../fixtures/store/database.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";

const EMILE = "émile.dupont@example.org";
const TOKEN = "0123456789abcdef";

const fleet = new TestFleet();

beforeAll(async () => {
  const store = openStore("file", fleet.root);
  await store.registry.update((registry) => {
    for (const [id, user] of [
      ["alice-2bd806c97f0e", "alice"],
      ["user-1bd806c97f0e", EMILE],
    ] as const)
      registry.servers[id] = serverRecord(id, { user, state: "stopped", process: null, launchId: null });
  });
  for (const [id, owner] of [
    ["notes", "alice"],
    ["novel", "alice"],
    ["review", EMILE],
  ] as const)
    await store.sessions.create(sessionRecord(id, { owner }));
  const createdAt = "2026-01-01T00:00:00.000Z";
  await store.tokens.create({ id: TOKEN, user: "alice", sha256: "0".repeat(64), createdAt, expiresAt: null });
  await store.close();
  mkdirSync(join(fleet.folder, "bin"));
  symlinkSync(COMMAND, join(fleet.folder, "bin", "copilotfleet"));
  fleet.env.PATH = [join(fleet.folder, "bin"), process.env.PATH].join(delimiter);
  writeFileSync(join(fleet.folder, "settings-of-tests.json"), "{}");
});
afterAll(async () => await fleet.end());

/** Returns the completions that `autocomplete` offers for the last word of a command line, without descriptions. */
async function candidates(
  words: readonly string[],
  env: NodeJS.ProcessEnv = {},
  ownProcess = false,
): Promise<string[]> {
  const text = await fleet.ok(["autocomplete", "zsh", "--", ...words], { env, ownProcess });
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => line.replace(/\t.*/, ""));
}

describe("autocomplete", () => {
  it.each([
    [["tok"], ["token"]],
    [
      ["token", ""],
      ["issue", "list", "revoke", "rotate"],
    ],
    [["s"], ["send", "serve", "servers", "sessions", "smoke", "spawn", "start", "status", "stop", "store"]],
    [
      ["autocomplete", ""],
      ["bash", "fish", "zsh"],
    ],
    [["help", "token", "i"], ["issue"]],
    [["-"], ["--help", "--version"]],
    [["ps", "--st"], ["--state"]],
    [
      ["ps", "--state", "st"],
      ["starting", "stopped"],
    ],
    [
      ["ps", "--state=st"],
      ["--state=starting", "--state=stopped"],
    ],
    [["list", "--user", "alice", "--us"], []],
    [["config", "get", "session.tt"], ["session.ttl"]],
    [["explain", "FLEET_INT"], ["FLEET_INTERNAL"]],
    [
      ["logs", ""],
      ["alice-2bd806c97f0e", "user-1bd806c97f0e"],
    ],
    [["stop", "alice-2bd806c97f0e", ""], ["user-1bd806c97f0e"]],
    [
      ["create", "--user", ""],
      ["alice", EMILE],
    ],
    [["create", "--user=ém"], [`--user=${EMILE}`]],
    [
      ["send", ""],
      ["notes", "novel", "review"],
    ],
    [
      ["send", "no"],
      ["notes", "novel"],
    ],
    [["send", "--user", EMILE, ""], ["review"]],
    [
      ["send", "--user", "carol", ""],
      ["notes", "novel", "review"],
    ],
    [["delete", "notes", "no"], ["novel"]],
    [
      ["describe", "al"],
      ["alice", "alice-2bd806c97f0e"],
    ],
    [["token", "revoke", ""], [TOKEN]],
    [["create", "--model", ""], ["gpt-5"]],
    [["ps", "--host", ""], []],
    [["create", "--id", ""], []],
    [["ps", "--config", ""], [":files"]],
    [[""], expect.arrayContaining(["ps", "ls", "token", "completion"])],
  ])("autocomplete offers exactly the possible completions of the last word of %j", async (words, expected) => {
    expect((await candidates(words)).toSorted()).toEqual(expected);
  });

  it("autocomplete adds descriptions of commands and flags for zsh and fish, but not for bash", async () => {
    const help = "show flags and examples";
    for (const shell of ["zsh", "fish"])
      expect(await fleet.ok(["autocomplete", shell, "--", "ps", "--he"])).toBe(`--help\t${help}\n`);
    expect(await fleet.ok(["completion", "bash", "--", "copilotfleet ps --he"])).toBe("--help\n");
    const found = await fleet.run(["autocomplete", "bash", "--json", "--", "copilotfleet ps --he"]);
    expect(found.json()).toEqual({ candidates: [{ value: "--help", description: help }], files: false });
  });

  it("autocomplete changes nothing on the disk and starts no server", async () => {
    const look = () => {
      // A process that only reads may move earlier commits into the database when it closes it.
      const names = readdirSync(fleet.root, { recursive: true, encoding: "utf8" }).filter(
        (name) => !name.startsWith("state.db"),
      );
      const times = names.toSorted().map((name) => `${name} ${statSync(join(fleet.root, name)).mtimeMs}`);
      return [...dumped(join(fleet.root, "state.db")), ...times];
    };
    const before = look();
    for (const words of [
      ["describe", ""],
      ["send", ""],
      ["token", "revoke", ""],
      ["send", "--user", "alice", ""],
    ])
      expect(await candidates(words)).not.toEqual([]);
    expect(look()).toEqual(before);
    expect(fleet.processes()).toEqual([]);
    const empty = join(fleet.folder, "nothing-yet");
    expect(await candidates(["describe", ""], { COPILOTFLEET_HOME: empty })).toEqual([]);
    expect(readdirSync(fleet.folder)).not.toContain("nothing-yet");
  });

  it("autocomplete does not offer a configured model name that contains shell syntax", async () => {
    for (const model of ["$(touch<made)", "--x;touch<made"]) {
      expect(await candidates(["create", "--model", ""], { COPILOTFLEET_SESSION_MODEL: model })).toEqual([]);
    }
    expect(await candidates(["create", "--model", ""], { COPILOTFLEET_SESSION_MODEL: "ollama/llama3:8b" })).toEqual([
      "ollama/llama3:8b",
    ]);
    const variables = { MY_TOKEN_A: "secret", "MY_TOKEN_`id`": "", "MY_TOKEN a": "" };
    expect(await candidates(["spawn", "--token-env", "MY_TOKEN"], variables)).toEqual(["MY_TOKEN_A"]);
  });

  it.each<[string, NodeJS.ProcessEnv]>([
    ["the configuration is wrong", { COPILOTFLEET_SESSION_TTL: "soon" }],
    ["Redis is not there", { COPILOTFLEET_STORE: "redis://127.0.0.1:1/0" }],
    ["the state folder is not safe", { COPILOTFLEET_HOME: "/dev/null/state" }],
  ])("autocomplete offers no ids and prints no error if %s", async (_, env) => {
    // Run the command in its own process, because it exits if the fleet does not answer in time.
    expect(await candidates(["describe", ""], env, true)).toEqual([]);
    expect(await candidates(["ps", "--state", "re"], env)).toEqual(["ready"]);
  });

  it("autocomplete offers the model of the file that --config names, and nothing if that file is missing", async () => {
    const words = ["create", "--config", "models.json", "--model", ""];
    writeFileSync(join(fleet.folder, "models.json"), '{ "session": { "model": "mine" } }');
    expect(await candidates(words)).toEqual(["mine"]);
    expect(await candidates(words.with(2, "missing.json"))).toEqual([]);
  });

  it("autocomplete refuses an unknown SHELL and a missing SHELL", async () => {
    expect((await fleet.refusal(2, ["autocomplete", "tcsh"])).message).toContain("bash, zsh or fish");
    expect((await fleet.refusal(2, ["autocomplete"])).message).toBe("SHELL is missing.");
  });
});

/** For each shell: the arguments that start it without any user's settings, and the line that turns completion on. */
const SHELLS = {
  bash: { args: ["--norc", "--noprofile", "-i"], on: "source <(copilotfleet autocomplete bash)" },
  zsh: { args: ["-f", "-i"], on: "source <(copilotfleet autocomplete zsh)" },
  fish: { args: ["--no-config", "-i"], on: "copilotfleet autocomplete fish | source" },
};

describe.each(Object.entries(SHELLS))("on a terminal, %s", (program, { args, on }) => {
  /** The shell in which the tests type one line after another. */
  let shell: Terminal | undefined;
  afterEach(async ({ task }) => {
    // After a failed test, the shell may be in the middle of a line.
    if (task.result?.state === "fail") await close();
  });
  afterAll(async () => await close());

  async function close(): Promise<void> {
    await shell?.[Symbol.asyncDispose]();
    shell = undefined;
  }

  async function open(env: NodeJS.ProcessEnv = {}): Promise<Terminal> {
    const terminal = new Terminal(fleet, args, {
      ...{ program, columns: 140 },
      env: { TERM: "dumb", LC_ALL: "C.UTF-8", ...env },
    });
    terminal.type(`${on}; echo rea''dy\r`);
    await terminal.shows(/ready/);
    return terminal;
  }

  /** Types `line`, presses Tab, lets the shell print the resulting line, and checks that it is `completed`. */
  async function expectCompletion(terminal: Terminal, line: string, completed: string): Promise<void> {
    const from = terminal.text.length;
    terminal.type(`${line}\t\x01echo ---\x05---\r`);
    await terminal.shows(new RegExp(`---${completed.replace(/[.]/g, "\\.")} ?---`), from);
    expect(terminal.text.slice(from)).not.toMatch(/Error|FLEET_|not found/);
  }

  it.skipIf(!has(program)).each([
    ["copilotfleet tok", "copilotfleet token"],
    ["copilotfleet token issue --us", "copilotfleet token issue --user"],
    ["copilotfleet logs ali", "copilotfleet logs alice-2bd806c97f0e"],
    ["copilotfleet send rev", "copilotfleet send review"],
    ["copilotfleet ps --user=al", "copilotfleet ps --user=alice"],
    ['copilotfleet ps --user "al', "copilotfleet ps --user alice"],
    ["copilotfleet create --user émile.dupont@ex", `copilotfleet create --user ${EMILE}`],
    ["copilotfleet ps --config settings-of", "copilotfleet ps --config settings-of-tests.json"],
    ["copilotfleet logs nobody", "copilotfleet logs nobody"],
    ["X=1 copilotfleet tok", "X=1 copilotfleet token"],
  ])("Tab completes %j to %j", async (line, completed) => {
    shell ??= await open();
    await expectCompletion(shell, line, completed);
  });

  it.skipIf(!has(program))("with an invalid configuration, Tab completes states but no ids", async () => {
    await using terminal = await open({ COPILOTFLEET_SESSION_TTL: "soon" });
    await expectCompletion(terminal, "copilotfleet ps --state re", "copilotfleet ps --state ready");
    await expectCompletion(terminal, "copilotfleet logs al", "copilotfleet logs al");
  });
});
