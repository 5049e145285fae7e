import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type EchoModel, startEchoModel } from "../../src/providers/echo.js";
import type { ServerView } from "../../src/servers/server.js";
import { testFleet } from "../fixtures/commands/cli.js";
import type { Ran } from "../fixtures/commands/command.js";
import { memoryHas } from "../fixtures/processes.js";

/** Plants a secret wherever a fleet reads secrets, runs commands, and searches all their traces for each secret. */

const canary = (kind: string) => `canary${kind}${randomBytes(12).toString("hex")}`;
const secrets = {
  fromVariable: `gho_${canary("Var")}`,
  fromFile: `gho_${canary("File")}`,
  fromCommand: `gho_${canary("Cmd")}`,
  modelKey: `sk-${canary("Key")}`,
  unlisted: canary("Unlisted"),
};

const fleet = testFleet({
  GITHUB_CANARY: secrets.fromVariable,
  MODEL_KEY: secrets.modelKey,
  AWS_SECRET_ACCESS_KEY: secrets.unlisted,
  COPILOTFLEET_PROVIDER_TYPE: undefined,
  COPILOTFLEET_PROVIDER_API_KEY: '{"env":"MODEL_KEY"}',
  // Without this address, at which no server listens, a runtime with a token would connect to GitHub.
  COPILOT_API_URL: "http://127.0.0.1:9",
  COPILOT_DEBUG_GITHUB_API_URL: "http://127.0.0.1:9",
});
const tokenFile = join(fleet.folder, "token");
const commandFile = join(fleet.folder, "command-token");
const AUTH_COMMAND = { COPILOTFLEET_AUTH_GITHUB_TOKEN: JSON.stringify({ command: `cat ${commandFile}` }) };

let model: EchoModel;
let connectionTokens: string[] = [];
const outputs: { args: string; text: string }[] = [];
const commandLines = new Set<string>();
let watching = true;
let watcher: Promise<void>;

async function watchCommandLines(): Promise<void> {
  while (watching) {
    for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
      try {
        commandLines.add(readFileSync(`/proc/${pid}/cmdline`, "utf8"));
      } catch {
        // The process has ended.
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 15));
  }
}

async function use(args: string[], env: NodeJS.ProcessEnv = {}): Promise<Ran[]> {
  const both = [await fleet.run(args, { env }), await fleet.run([...args, "--json"], { env: { ...env, DEBUG: "" } })];
  for (const { stdout, stderr } of both) outputs.push({ args: args.join(" "), text: stdout + stderr });
  return both;
}

const environmentOf = (pid: number) => readFileSync(`/proc/${pid}/environ`, "utf8").split("\0");

beforeAll(async () => {
  model = await startEchoModel();
  fleet.env.COPILOTFLEET_PROVIDER_BASE_URL = model.baseUrl;
  writeFileSync(tokenFile, `${secrets.fromFile}\n`, { mode: 0o600 });
  writeFileSync(commandFile, `${secrets.fromCommand}\n`, { mode: 0o600 });
  watcher = watchCommandLines();
  for (const ran of [
    await use(["spawn", "--user", "var", "--token-env", "GITHUB_CANARY"]),
    await use(["spawn", "--user", "file", "--token-file", tokenFile]),
    await use(["spawn", "--user", "cmd"], AUTH_COMMAND),
    await use(["create", "--user", "var", "--prompt", "hello"]),
    await use(["ps"]),
    await use(["restart", "--user", "file"]),
    await use(["list"]),
    await use(["logs", "var"]),
    await use(["doctor"]),
    await use(["doctor", "--fix"], AUTH_COMMAND),
  ]) {
    expect(ran).toMatchObject([{ code: 0 }, { code: 0 }]);
  }
  await fleet.create("var", "s");
  expect(await use(["send", "s", "hello", "--user", "var"])).toMatchObject([{ code: 0 }, { code: 0 }]);
  // Run commands that fail while they have access to the secrets, because an error could reveal them.
  await use(["send", "s", "!fail on purpose", "--user", "var"]);
  await use(["spawn", "--user", "var", "--token-env", "MODEL_KEY"]);
  await use(["spawn", "--user", "bad", "--token-env", "MULTILINE"], { MULTILINE: `${secrets.fromVariable}\nx` });
  await use(["create", "--user", "nokey"], { MODEL_KEY: `${secrets.modelKey} x` });
  await use(["spawn", "--user", "exits", "--token-env", "GITHUB_CANARY"], { COPILOT_CLI_PATH: "/bin/false" });
  await use(["spawn", "--user", "fails"], {
    COPILOTFLEET_AUTH_GITHUB_TOKEN: JSON.stringify({ command: `cat ${commandFile}; cat ${commandFile} >&2; exit 3` }),
  });
  const { servers } = await fleet.json<{ servers: ServerView[] }>(["ps"]);
  for (const { user, pid } of servers) {
    if (user === null || pid === null) continue;
    connectionTokens.push((await fleet.json<{ token: string }>(["connect", "--user", user])).token);
  }
  watching = false;
  await watcher;
});

afterAll(async () => {
  watching = false;
  await watcher;
  await model.close();
});

function planted(): [string, string][] {
  return [
    ...Object.entries(secrets),
    ...connectionTokens.map((token, index): [string, string] => [`connection token ${index}`, token]),
  ];
}

describe("secrets", () => {
  it("secrets reach the servers that use them (otherwise, the tests below could not find a leak)", async () => {
    expect(memoryHas(await fleet.pidOf("var"), secrets.fromVariable)).toBe(true);
    expect(memoryHas(await fleet.pidOf("file"), secrets.fromFile)).toBe(true);
    expect(memoryHas(await fleet.pidOf("cmd"), secrets.fromCommand)).toBe(true);
    expect(model.requests).toBeGreaterThan(2);
    expect(connectionTokens).toHaveLength(3);
    for (const token of connectionTokens) expect(token).toMatch(/^[\w-]{43}$/);
  });

  it("no server shows a secret or an unlisted variable in its environment, and a server's memory has no model key", async () => {
    for (const user of ["var", "file", "cmd"]) {
      const pid = await fleet.pidOf(user);
      const environment = environmentOf(pid).join("\n");
      for (const [name, secret] of planted()) expect(environment, name).not.toContain(secret);
      expect(memoryHas(pid, secrets.modelKey)).toBe(false);
    }
  });

  it("secrets are in no output of any command", () => {
    expect(outputs.length).toBeGreaterThan(30);
    for (const [name, secret] of planted()) {
      const hits = outputs.filter(({ text }) => text.includes(secret));
      expect(
        hits.map(({ args }) => args),
        name,
      ).toEqual([]);
    }
  });

  it("secrets are on no command line of any process at any moment", () => {
    const all = [...commandLines].join("\n");
    expect(all).toContain("--auth-token-env\0COPILOT_GITHUB_TOKEN");
    for (const [name, secret] of planted()) expect(all.includes(secret), name).toBe(false);
  });

  it("secrets are in no file, except for each connection token, which is in its own file of mode 0600", () => {
    const files = readdirSync(fleet.folder, { recursive: true, encoding: "utf8" })
      .map((name) => join(fleet.folder, name))
      .filter((path) => path !== tokenFile && path !== commandFile && statSync(path).isFile());
    expect(files.length).toBeGreaterThan(20);
    let kept = 0;
    for (const path of files) {
      const content = readFileSync(path, "latin1");
      for (const [name, secret] of planted()) {
        if (!content.includes(secret)) continue;
        expect(path, name).toMatch(/\/servers\/[^/]+\/connection-token$/);
        expect(statSync(path).mode & 0o777).toBe(0o600);
        kept++;
      }
    }
    expect(kept).toBe(3);
  });

  it("a server gets a new connection token at every start", async () => {
    await fleet.ok(["restart", "--user", "file"]);
    const { token } = await fleet.json<{ token: string }>(["connect", "--user", "file"]);
    expect(connectionTokens).not.toContain(token);
    connectionTokens = [...connectionTokens, token];
  });
});
