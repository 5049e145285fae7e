import { mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { testFleet } from "../fixtures/commands/cli.js";
import type { Ran } from "../fixtures/commands/command.js";
import { eventually } from "../fixtures/eventually.js";
import { isRunning } from "../fixtures/processes.js";

/**
 * Most tests run a command in the process of the test, because that is ten times as fast. Here, each command runs
 * as a user runs it: in a new process, which has to print its result, set its exit code and end by itself.
 */

const fleet = testFleet();
const ALICE = ["--user", "alice"];
const ARCHIVE = join(fleet.folder, "s.tar.gz");

/** The output of each command, for the examples that need an id or a token from it. */
const printed = new Map<string, string>();
const word = (command: string) => printed.get(command)?.trim() ?? "";

interface Example {
  args: () => string[];
  stdout: RegExp;
  stderr?: RegExp;
  code?: number;
  /** Set if a second run of the command has a different result. Then a failed test is not retried. */
  once?: true;
}

/** One example of each command. The order matters, because a command may need what an earlier one created. */
const EXAMPLES: Record<string, Example> = {
  spawn: { args: () => ["spawn", ...ALICE], stdout: /^SERVER .*\nalice-\w+ +alice +127\.0\.0\.1:\d+ .*\n$/ },
  ps: { args: () => ["ps"], stdout: /^SERVER .*\nalice-\w+ .* ready .*\n$/ },
  top: {
    args: () => ["top"],
    stdout: /^HOST .*\n\nSERVER .*\nalice-\w+ .*\n\nSessions: 0 active, 0 idle.*\nUsers: 1 .*\n$/s,
  },
  logs: {
    args: () => ["logs", /alice-\w+/.exec(word("spawn"))?.[0] ?? "", "--lines", "1"],
    stdout: /^\S+Z \[copilotfleet\] Process \d+ answers on port \d+ \(version \S+\)\.\n$/,
  },
  route: { args: () => ["route", ...ALICE], stdout: /^USER .*\nalice +alice-\w+ .* ready .*\n$/ },
  connect: {
    args: () => ["connect", ...ALICE],
    stdout: /^export COPILOT_CLI_URL=127\.0\.0\.1:\d+\nexport COPILOT_CONNECTION_TOKEN=\S+\n$/,
  },
  create: { args: () => ["create", ...ALICE, "--id", "s", "--prompt", "hi"], stdout: /^s\n\[turn 1\] hi\n$/ },
  send: { args: () => ["send", "s", "more", ...ALICE], stdout: /^\[turn \d\] more\n$/ },
  resume: { args: () => ["resume", "s", ...ALICE, "--prompt", "on"], stdout: /^\[turn \d\] on\n$/ },
  chat: {
    args: () => ["chat", "s", ...ALICE],
    stdout: /^$/,
    stderr:
      /^Error: A chat needs a terminal\. \[FLEET_USAGE_INVALID\]\n {2}Try: copilotfleet send s TEXT --user alice\n$/,
    code: 2,
  },
  list: { args: () => ["list"], stdout: /^SESSION .*\ns +alice +alice-\w+ +(idle|active) .*\n$/ },
  transcript: { args: () => ["transcript", "s", ...ALICE], stdout: /hi\n.*\[turn 1\] hi\n/s },
  describe: { args: () => ["describe", "s"], stdout: /^Session s\n.* Owner: +alice\n.*\nNext:\n.*\n$/s },
  export: {
    args: () => ["export", "s", ...ALICE, "--output", ARCHIVE],
    stdout: /^\/.*\/s\.tar\.gz \(\d+ bytes\)\n$/,
    once: true,
  },
  import: { args: () => ["import", ARCHIVE, ...ALICE, "--id", "t"], stdout: /^t\n$/, once: true },
  events: { args: () => ["events", "--type", "server.started"], stdout: /^\S+Z {2}server\.started +alice, .*\n$/s },
  "events verify": { args: () => ["events", "verify"], stdout: /^\d+ events, and no line was changed, .*\.\n$/ },
  usage: {
    args: () => ["usage", "--by", "model"],
    stdout: /^KEY +TURNS +.*\ngpt-5 +3 +3 .*\n\n3 turns, 3 model requests, \d+ input and \d+ output tokens\n$/,
  },
  evict: { args: () => ["evict", "s"], stdout: /^SESSION .*\ns +(unloaded|skipped: not active)\n$/ },
  lock: { args: () => ["lock", "s", ...ALICE], stdout: /^[0-9a-f]{64}\n$/, once: true },
  unlock: { args: () => ["unlock", "s", "--token", word("lock")], stdout: /^s\n$/, once: true },
  delete: { args: () => ["delete", "s"], stdout: /^s\n$/, once: true },
  gc: { args: () => ["gc"], stdout: /^gc: deleted 0 sessions \(0 B\), skipped 0, cleared 0 servers\n$/ },
  doctor: {
    args: () => ["doctor"],
    stdout: /^(ok|WARN) +node .*\nok +stray processes +none\n.*\n\n\d+ checks: \d+ ok.*\n$/s,
  },
  explain: { args: () => ["explain", "FLEET_INTERNAL"], stdout: /^FLEET_INTERNAL: .*\nPossible causes:\n.*\n$/s },
  init: {
    args: () => ["init", "--provider", "echo", "--user-config"],
    stdout: /^The model replied: \[turn 1\] .*\nWrote \/.*\/config\.json\nCOPILOTFLEET_PROVIDER_TYPE .*\nNext: .*\n$/,
    once: true,
  },
  autocomplete: {
    args: () => ["autocomplete", "bash"],
    stdout: /^# Completion .*\ncomplete -F _copilotfleet copilotfleet\n$/s,
  },
  "config show": { args: () => ["config", "show"], stdout: /^KEY +VALUE +ORIGIN\n.*\nstore +file +default\n.*\n$/s },
  "config get": { args: () => ["config", "get", "session.ttl"], stdout: /^30d\n$/ },
  "config path": { args: () => ["config", "path"], stdout: /^FILE +KIND +STATE\n.* project .*\n.* user .*\n$/ },
  "config check": { args: () => ["config", "check"], stdout: /^ok +The configuration is valid\. .*\n$/ },
  "config schema": { args: () => ["config", "schema"], stdout: /^\{\n.*"session": \{.*\n\}\n$/s },
  open: {
    args: () => ["open", ...ALICE],
    stdout: /^$/,
    stderr:
      /^Error: serve does not run on this host, .* \[FLEET_HOST_AWAY\]\n {2}Try: copilotfleet serve --http \S+\n$/,
    code: 7,
  },
  version: { args: () => ["version"], stdout: /^copilotfleet +\d+\.\d+\.\d+\n.*runtime +\S+, protocol \d .*\n$/s },
  help: { args: () => ["help", "help"], stdout: /^Show all commands.*\n$/s },
  "limit set": {
    args: () => ["limit", "set", ...ALICE, "--turns-per-minute", "10"],
    stdout: /^LIMIT .*\nturns per minute +\S+ +10 +limit set\n.*$/s,
  },
  "limit show": {
    args: () => ["limit", "show", ...ALICE],
    stdout: /^LIMIT .*\nturns per minute .*\ntokens per month .*\n$/s,
  },
  "limit clear": {
    args: () => ["limit", "clear", ...ALICE],
    stdout: /^LIMIT .*\nturns per minute +\S+ +unlimited +limits\.default\.turnsPerMinute\n.*$/s,
  },
  "user list": { args: () => ["user", "list"], stdout: /^USER .*\nalice .*\n$/s },
  "user export": {
    args: () => ["user", "export", "alice", "--output", join(fleet.folder, "alice")],
    stdout: /^\/.*\/alice \(\d+ sessions?\)\n$/,
    once: true,
  },
  "user suspend": {
    args: () => ["user", "suspend", "stranger"],
    stdout: /^stranger is suspended since \S+Z\. 0 servers stopped\.\nThe user has no session, server or token\.\n$/,
  },
  "user resume": {
    args: () => ["user", "resume", "stranger"],
    stdout: /^stranger is no longer suspended\.\n$/,
    once: true,
  },
  "user purge": {
    args: () => ["user", "purge", "nobody", "--yes", "--ignore-not-found"],
    stdout: /^Erased the data of nobody: 0 sessions, 0 servers, 0 tokens \(0 B\)\nNothing remains .*\n$/,
  },
  "token issue": { args: () => ["token", "issue", ...ALICE], stdout: /^cft_[0-9a-f]{16}_\S+\n$/, once: true },
  "token list": { args: () => ["token", "list"], stdout: /^TOKEN .*\n[0-9a-f]{16} +alice .*\n$/ },
  "token rotate": {
    args: () => ["token", "rotate", word("token issue").split("_")[1] ?? ""],
    stdout: /^cft_[0-9a-f]{16}_\S+\n$/,
    once: true,
  },
  "token revoke": {
    args: () => ["token", "revoke", word("token issue").split("_")[1] ?? ""],
    stdout: /^[0-9a-f]{16}\n$/,
    once: true,
  },
  trust: {
    args: () => ["trust"],
    stdout: /^$/,
    stderr:
      /^Error: There is no \.copilotfleet\.json in .* \[FLEET_USAGE_INVALID\]\n {2}Try: copilotfleet trust PATH\n$/,
    code: 2,
  },
  "store migrate": {
    args: () => ["store", "migrate", "--to", "file"],
    stdout: /^$/,
    stderr: /^Error: --to is "file", .*\. \[FLEET_USAGE_INVALID\]\n {2}Try: copilotfleet store migrate .*\n$/,
    code: 2,
  },
  "store sign": {
    args: () => ["store", "sign"],
    stdout: /^$/,
    stderr: /^Error: The store is in files, .*\. \[FLEET_USAGE_INVALID\]\n {2}Try: copilotfleet config get store\n$/,
    code: 2,
  },
  "deploy systemd": { args: () => ["deploy", "systemd"], stdout: /^# .*\n\[Unit\]\n.*\n$/s },
  "deploy compose": { args: () => ["deploy", "compose"], stdout: /^.*services:\n.*\n$/s },
  "deploy kubernetes": { args: () => ["deploy", "kubernetes"], stdout: /^.*kind: StatefulSet\n.*\n$/s },
  restart: { args: () => ["restart", ...ALICE], stdout: /^SERVER .*\nalice-\w+ .* ready .*\n$/ },
  stop: { args: () => ["stop", ...ALICE], stdout: /^SERVER .*\nalice-\w+ +drained +-\n$/, once: true },
  drain: {
    args: () => ["drain"],
    stdout: /^Nothing to stop\.\nThe pool is closed\. Open it again: copilotfleet drain --undo\n$/,
  },
  smoke: { args: () => ["smoke"], stdout: /^ok +spawn .*\nok +stop .*\n$/s },
};

describe("a command in its own process", () => {
  for (const [name, { args, stdout, stderr = /^$/, code = 0, once = false }] of Object.entries(EXAMPLES)) {
    const options = once ? { retry: 0 } : {};
    it(`${name} prints its result, sets its exit code and ends by itself`, options, async () => {
      const ran = await fleet.start(args()).done;
      printed.set(name, ran.stdout);
      expect(outcome(ran)).toEqual({
        code,
        signal: null,
        stdout: expect.stringMatching(stdout),
        stderr: expect.stringMatching(stderr),
      });
    });
  }

  it("serve ends with exit code 0 on a SIGTERM after its start", async () => {
    const env = { COPILOTFLEET_SERVE_LISTEN: "127.0.0.1:0", COPILOTFLEET_SERVE_METRICS: "127.0.0.1:0" };
    const { child, done } = fleet.start(["serve"], { env });
    let log = "";
    child.stderr?.on("data", (piece) => {
      log += String(piece);
    });
    await eventually("serve", () => log.includes('"serving"'));
    child.kill("SIGTERM");
    expect(await done).toMatchObject({
      code: 0,
      signal: null,
      stdout: expect.stringMatching(/^Supervising 0 servers\. Front door: .*\nNothing to stop\.\n$/),
    });
  });

  it.each(["SIGINT", "SIGTERM"] as const)(
    "proxy prints its address once, and ends with exit code 0 on %s",
    async (signal) => {
      const env = { FLEET_TOKEN: "cft_token" };
      const { child, done } = fleet.start(["proxy", "--to", "127.0.0.1:1", "--token-env", "FLEET_TOKEN", "--json"], {
        env,
      });
      let shown = "";
      child.stdout?.on("data", (piece) => {
        shown += String(piece);
      });
      await eventually("the address", () => shown.includes("}"));
      child.kill(signal);
      const ran = await done;
      expect(ran).toMatchObject({ code: 0, signal: null, stderr: "" });
      expect(JSON.parse(ran.stdout)).toEqual({
        url: expect.stringMatching(/^127\.0\.0\.1:\d+$/),
        to: "127.0.0.1:1",
        token: expect.stringMatching(/^cfp_\S{43}$/),
      });
    },
  );

  it("serve refuses to start without TLS at an address that other machines can reach, and exits with 3", async () => {
    const env = { COPILOTFLEET_SERVE_LISTEN: "0.0.0.0:0", COPILOTFLEET_SERVE_METRICS: "127.0.0.1:0" };
    expect(await fleet.start(["serve"], { env }).done).toMatchObject({
      code: 3,
      stdout: "",
      stderr: expect.stringMatching(
        /^Error: serve\.listen is "0\.0\.0\.0:0".*serve\.tls.*insecure.*\[FLEET_CONFIG_INVALID\]\n {2}Hint: Set serve\.tls/,
      ),
    });
  });

  describe("smoke that ends early", () => {
    const TMPDIR = join(fleet.folder, "temporary");
    mkdirSync(TMPDIR, { recursive: true });
    const expectNothingLeft = ({ stdout }: Ran) => {
      expect(stdout).not.toContain("stop ");
      expect(isRunning(Number(/, pid (\d+)/.exec(stdout)?.[1]))).toBe(false);
      expect(readdirSync(TMPDIR).filter((name) => name.startsWith("copilotfleet-"))).toEqual([]);
    };

    it.each([
      ["SIGINT", 130],
      ["SIGTERM", 143],
    ] as const)("smoke stops its server and removes its folder after %s, and exits with %s", async (signal, code) => {
      const { child, done } = fleet.start(["smoke"], { env: { TMPDIR } });
      let shown = "";
      child.stdout?.on("data", (piece) => {
        shown += String(piece);
      });
      await eventually("the third step", () => shown.includes("send "));
      child.kill(signal);
      const ran = await done;
      expect(ran).toMatchObject({ code, signal: null });
      expectNothingLeft(ran);
    });

    it("smoke stops its server and removes its folder when its reader closes the pipe, and does not exit with 0", async () => {
      const under = ["bash", "-o", "pipefail", "-c", '"$@" | head -2', "bash"];
      const ran = await fleet.run(["smoke"], { env: { TMPDIR }, under });
      expect(ran).toMatchObject({ code: 141, stdout: expect.stringMatching(/^ok +spawn .*\nok +create .*\n$/) });
      expectNothingLeft(ran);
    });
  });

  it("EXAMPLES has an example of every command but proxy and serve, which have tests of their own", () => {
    const manifest = readFileSync(new URL("../../oclif.manifest.json", import.meta.url), "utf8");
    const { commands } = JSON.parse(manifest) as { commands: object };
    const names = Object.keys(commands).map((id) => id.replace(":", " "));
    expect([...Object.keys(EXAMPLES), "proxy", "serve"].toSorted()).toEqual(names.toSorted());
  });

  it.each([
    [["explain", "FLEET_INTERNAL"]],
    [["create", "--help"]],
    [["create"]],
    [["spwan", "--json"]],
    [["send", "nowhere", "x", ...ALICE, "--json"]],
    [["deploy", "compose"]],
    [["list", "--state", "idel"]],
  ])("the command line %j prints the same in its own process as in the process of the test", async (args) => {
    expect(outcome(await fleet.run(args))).toEqual(outcome(await fleet.start(args).done));
  });
});

function outcome({ code, signal, stdout, stderr }: Ran) {
  return { code, signal, stdout, stderr };
}
