import { chmodSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer, request as forward, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { testFleet } from "../fixtures/commands/cli.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { type ScriptedModel, startScriptedModel } from "../fixtures/models/scripted-model.js";
import { processesWith, withoutSandboxes } from "../fixtures/processes.js";
import { unused } from "../fixtures/sessions/unused.js";

const fleet = testFleet({ COPILOTFLEET_PROVIDER_TYPE: undefined, OLLAMA_HOST: "127.0.0.1:1" });
/** With a key, servers ask the service through the model gateway even where no sandbox works. */
const KEY = { MODEL_KEY: "the-key-of-the-service" };
const programs = join(fleet.folder, "programs");
let model: ScriptedModel;
/** Accepts requests and never answers. */
let silent: Server;
/** Refuses the key of every request. */
let refusing: Server;
/** Lists models, and does not have the model of any prompt. */
let listing: Server;
let count = 0;
/** The id with a space is not a name that a configuration accepts. */
const MODELS = JSON.stringify({ data: [{ id: "mini" }, { id: "a b" }, { id: "gpt-5" }, { id: "large" }] });

/** A new folder for one project. */
function project(): string {
  const folder = join(fleet.folder, `project-${count++}`);
  mkdirSync(folder);
  return folder;
}

const fileIn = (cwd: string) => join(cwd, ".copilotfleet.json");
const contentOf = (cwd: string) => JSON.parse(readFileSync(fileIn(cwd), "utf8")) as Record<string, unknown>;
const addressOf = (server: Server) => `127.0.0.1:${(server.address() as AddressInfo).port}`;
const ourOwn = () => [
  ...["--provider", "openai", "--base-url", model.baseUrl, "--model", "m-1", "--api-key-env", "MODEL_KEY"],
];

beforeAll(async () => {
  model = await startScriptedModel();
  silent = createServer(() => undefined);
  refusing = createServer((_, response) => response.writeHead(401).end('{"error": {"message": "bad key"}}'));
  listing = createServer(({ method, url = "" }, response) => {
    if (method === "GET") response.end(url.includes("/empty/") ? '{"data": []}' : MODELS);
    else response.writeHead(404).end('{"error": {"message": "no such model"}}');
  });
  for (const server of [silent, refusing, listing])
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  mkdirSync(programs);
  writeFileSync(join(programs, "gh"), '#!/bin/sh\n[ "$2" = status ] || echo gho_canary\n', { mode: 0o755 });
});

afterAll(async () => {
  for (const server of [silent, refusing, listing]) {
    server.closeAllConnections();
    server.close();
  }
  await model[Symbol.asyncDispose]();
});

describe("init with flags", () => {
  it("init writes a file that names its schema, needs no trust for the echo model, and works at once", async () => {
    const cwd = project();
    const shown = await fleet.ok(["init", "--provider", "echo"], { cwd });
    expect(shown).toBe(
      [
        "The model replied: [turn 1] Say hello in one short sentence.",
        `Wrote ${fileIn(cwd)}`,
        "Next: copilotfleet create --user alice --prompt hello\n",
      ].join("\n"),
    );
    expect(contentOf(cwd)).toEqual({
      $schema: expect.stringMatching(/^https:\/\/.*\/schemas\/config\.json$/),
      provider: { type: "echo" },
    });
    expect(statSync(fileIn(cwd)).mode & 0o777).toBe(0o644);
    expect(readdirSync(cwd)).toEqual([".copilotfleet.json"]);
    const created = await fleet.ok(["create", "--user", "alice", "--id", `echo-${count}`, "--prompt", "hi"], { cwd });
    expect(created).toContain("[turn 1] hi");
  });

  it("init tries a prompt on the given service with the key from the variable, and trusts the file that it wrote", async () => {
    const cwd = project();
    const env = { MODEL_KEY: "key-1" };
    const result = await fleet.json<{ reply: string; trusted: object }>(["init", ...ourOwn()], { cwd, env });
    expect(result).toMatchObject({
      path: fileIn(cwd),
      reply: expect.stringContaining("Say hello"),
      trusted: { path: fileIn(cwd), state: "trusted" },
    });
    expect(model.keys).toContain("Bearer key-1");
    expect(contentOf(cwd)).toMatchObject({
      provider: { type: "openai", baseUrl: model.baseUrl, apiKey: { env: "MODEL_KEY" } },
      session: { model: "m-1" },
    });
    expect(await fleet.ok(["config", "get", "provider.baseUrl"], { cwd })).toBe(`${model.baseUrl}\n`);
    expect(await fleet.json(["trust", "--list"])).toMatchObject({
      trusted: expect.arrayContaining([expect.objectContaining({ path: fileIn(cwd), state: "trusted" })]),
    });
  });

  it("init writes nothing if the prompt fails, and the error names the reason", async () => {
    const cwd = project();
    const error = await fleet.refusal(3, ["init", ...ourOwn()], { cwd });
    expect(error.code).toBe("FLEET_MODEL_UNCONFIGURED");
    expect(error.message).toMatch(/MODEL_KEY.* is not set\. No file was written\.$/s);
    expect(error.suggestions).toContain("Add --no-try to write the file without trying a prompt.");
    const flags = ["--base-url", `http://${addressOf(refusing)}/v1`, "--model", "m", "--api-key-env", "MODEL_KEY"];
    const refused = await fleet.refusal(7, ["init", "--provider", "openai", ...flags], { cwd, env: KEY });
    expect(refused.message).toBe(
      `The turn failed: http://${addressOf(refusing)}/v1 refused the key in MODEL_KEY (provider.apiKey), status 401: "bad key". No file was written.`,
    );
    expect(refused.suggestions).toEqual(["Add --no-try to write the file without trying a prompt."]);
    expect(readdirSync(cwd)).toEqual([]);
  });

  it("init without --model takes the usual model that the service lists, and warns of a --model that it does not list", async () => {
    const cwd = project();
    const at = `http://${addressOf(listing)}`;
    const run = async (url: string, ...model: string[]) =>
      (
        await fleet.run(["init", "--provider", "openai", "--base-url", url, "--api-key-env", "MODEL_KEY", ...model], {
          cwd,
          env: KEY,
        })
      ).stderr;
    const refusal = (url: string, model: string) =>
      `Error: The turn failed: ${url} does not have the model "${model}" (session.model) or the address (provider.baseUrl), status 404: "no such model". No file was written.`;
    expect(await run(`${at}/v1`)).toMatch(`${refusal(`${at}/v1`, "gpt-5")} [FLEET_TURN_FAILED]\n`);
    expect(await run(`${at}/v1`, "--model", "foo")).toMatch(
      `Warning: "${at}/v1" does not list the model "foo". It lists "mini", "gpt-5", "large".\n${refusal(`${at}/v1`, "foo")}`,
    );
    expect(await run(`${at}/empty/v1`, "--model", "foo")).toMatch(refusal(`${at}/empty/v1`, "foo"));
    expect(await run(`${at}/empty/v1`)).toMatch("Error: --model is missing for --provider openai.");
    expect(readdirSync(cwd)).toEqual([]);
  });

  it("init refuses to replace a file without --force, and replaces it with --force", async () => {
    const cwd = project();
    writeFileSync(fileIn(cwd), "mine");
    const error = await fleet.refusal(5, ["init", "--provider", "echo"], { cwd });
    expect(error).toMatchObject({ code: "FLEET_TARGET_EXISTS" });
    expect(readFileSync(fileIn(cwd), "utf8")).toBe("mine");
    await fleet.ok(["init", "--provider", "echo", "--force", "--no-try"], { cwd });
    expect(contentOf(cwd)).toMatchObject({ provider: { type: "echo" } });
  });

  it("init does not write through a symbolic link without --force", async () => {
    const cwd = project();
    symlinkSync(join(cwd, "elsewhere.json"), fileIn(cwd));
    expect(await fleet.refusal(5, ["init", "--provider", "echo", "--no-try"], { cwd })).toMatchObject({
      code: "FLEET_TARGET_EXISTS",
    });
    expect(readdirSync(cwd)).toEqual([".copilotfleet.json"]);
  });

  it("init in a folder that it cannot write to exits with 3 and names the folder", async () => {
    const cwd = join(project(), "gone");
    mkdirSync(cwd);
    chmodSync(cwd, 0o555);
    // Root may write anywhere, so use a folder in which nobody can create a file.
    const at = process.geteuid?.() === 0 ? "/proc" : cwd;
    const error = await fleet.refusal(3, ["init", "--provider", "echo", "--no-try"], { cwd: at });
    expect(error.message).toContain(`${at}/.copilotfleet.json cannot be written`);
  });

  it("init --user-config writes the user's own file, which only the user can read and which needs no trust", async () => {
    const cwd = project();
    const env = { HOME: join(fleet.folder, unused("home")) };
    const path = join(env.HOME, ".config", "copilotfleet", "config.json");
    const result = await fleet.json(["init", ...ourOwn(), "--user-config", "--no-try"], { cwd, env });
    expect(result).toMatchObject({ path, trusted: null });
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(await fleet.ok(["config", "get", "session.model"], { cwd, env })).toBe("m-1\n");
    const echo = ["init", "--provider", "echo", "--user-config", "--no-try"];
    const error = await fleet.refusal(5, echo, { cwd, env });
    expect(error).toMatchObject({ code: "FLEET_TARGET_EXISTS" });
    expect(error.suggestions).toContain("copilotfleet init --user-config --force");
    await fleet.ok([...echo, "--force"], { cwd, env });
  });

  it("init reports the variables that override its new file, and the file in a parent folder that its new file hides", async () => {
    const cwd = project();
    await fleet.ok(["init", "--provider", "echo", "--no-try"], { cwd });
    const below = join(cwd, "below");
    mkdirSync(below);
    const env = { COPILOTFLEET_PROVIDER_TYPE: "echo", COPILOTFLEET_SESSION_TTL: "1h" };
    expect(await fleet.json(["init", ...ourOwn(), "--no-try"], { cwd: below, env })).toMatchObject({
      overriddenBy: ["COPILOTFLEET_PROVIDER_TYPE"],
      replaces: fileIn(cwd),
    });
  });

  it.each([
    [[], "--provider is missing"],
    [["--provider", "azure"], "--base-url and --model are missing for --provider azure."],
    [["--provider", "openai", "--base-url", "http://a.example/v1"], "--model is missing for --provider openai."],
    [["--provider", "ollama"], "--model is missing for --provider ollama."],
    [["--provider", "github"], "--token-env is missing for --provider github."],
    [["--provider", "echo", "--model", "m", "--base-url", "http://a.example"], "--base-url and --model cannot be used"],
    [["--provider", "github", "--api-key-env", "K"], "--api-key-env cannot be used with --provider github."],
    [["--provider", "gemini"], '--provider is "gemini". Allowed: '],
    [
      ["--provider", "azure", "--base-url", "ftp://a", "--model", "m"],
      '--base-url is "ftp://a", which does not start with',
    ],
    [
      ["--provider", "openai", "--api-key-env", "sk-canary", "--model", "m"],
      "--api-key-env is not the name of a variable",
    ],
    [["--provider", "github", "--token-env", "ghp_canary01"], "--token-env is not the name of a variable"],
    [["--provider", "openai", "--model", "a b"], '--model is "a b", which contains a space.'],
  ])("init without a terminal and with the flags %j is refused: %s", async (flags, message) => {
    const cwd = project();
    const error = await fleet.refusal(2, ["init", ...flags], { cwd });
    expect(error.message).toContain(message);
    expect(JSON.stringify(error)).not.toContain("canary");
    expect(readdirSync(cwd)).toEqual([]);
  });
});

describe("init --yes", () => {
  it("init --yes chooses the echo model, and reports this, when it finds no key and no login", async () => {
    const cwd = project();
    const shown = await fleet.ok(["init", "--yes", "--no-try"], { cwd });
    expect(shown).toMatch(/^No key or login was found, so this is the built-in echo model\.\nWrote /);
    expect(contentOf(cwd).provider).toEqual({ type: "echo" });
  });

  it("init --yes uses the login of gh or the variable GH_TOKEN, and writes no token", async () => {
    const cwd = project();
    const env = { PATH: `${programs}:${fleet.env.PATH}` };
    await fleet.ok(["init", "--yes", "--no-try"], { cwd, env });
    expect(contentOf(cwd)).toMatchObject({ auth: { githubToken: { command: "gh auth token" } }, provider: null });
    expect(readFileSync(fileIn(cwd), "utf8")).not.toContain("canary");
    const token = project();
    await fleet.ok(["init", "--yes", "--no-try"], { cwd: token, env: { ...env, GH_TOKEN: "ghp_canary" } });
    expect(contentOf(token)).toMatchObject({ auth: { githubToken: { env: "GH_TOKEN" } }, provider: null });
    expect(readFileSync(fileIn(token), "utf8")).not.toContain("canary");
  });

  it("init --yes uses the key in OPENAI_API_KEY only for OpenAI's own address", async () => {
    const cwd = project();
    const env = { OPENAI_API_KEY: "canary" };
    await fleet.ok(["init", "--yes", "--no-try"], { cwd, env });
    expect(contentOf(cwd)).toMatchObject({
      provider: { type: "openai", baseUrl: "https://api.openai.com/v1", apiKey: { env: "OPENAI_API_KEY" } },
      session: { model: "gpt-5" },
    });
    const other = project();
    const flags = ["--provider", "openai", "--base-url", "http://a.example/v1", "--model", "m"];
    await fleet.ok(["init", "--yes", "--no-try", ...flags], { cwd: other, env });
    expect(contentOf(other).provider).toEqual({ type: "openai", baseUrl: "http://a.example/v1" });
  });

  it("init --yes chooses an Ollama that answers, and tries its first model", async () => {
    const cwd = project();
    const ollama = createServer((request, response) => {
      if (request.url === "/api/tags") response.end('{"models": [{"name": "llama3.2:latest"}]}');
      else if (request.method === "GET") response.end('{"data": [{"id": "llama3.2:latest"}]}');
      else {
        const { host: _, ...headers } = request.headers;
        const url = `${model.baseUrl}${request.url?.replace(/^\/v1/, "")}`;
        const passed = forward(url, { method: request.method, headers, agent: false }, (reply) => {
          response.writeHead(reply.statusCode ?? 500, reply.headers);
          reply.pipe(response);
        });
        request.pipe(passed);
      }
    });
    await new Promise<void>((resolve) => ollama.listen(0, "127.0.0.1", resolve));
    try {
      const env = { OLLAMA_HOST: addressOf(ollama) };
      const result = await fleet.json<{ reply: string }>(["init", "--yes"], { cwd, env });
      expect(result.reply).toContain("Say hello");
      expect(contentOf(cwd)).toMatchObject({
        provider: { type: "openai", baseUrl: `http://${addressOf(ollama)}/v1` },
        session: { model: "llama3.2:latest" },
      });
    } finally {
      ollama.closeAllConnections();
      ollama.close();
    }
  });
});

describe("init on a terminal", () => {
  it("init asks for what the flags do not give, asks again after a wrong answer, and shows the reply", async () => {
    const cwd = project();
    await using terminal = new Terminal(fleet, ["init", "--api-key-env", "MODEL_KEY"], {
      cwd,
      env: { MODEL_KEY: "key-2" },
    });
    let at = await terminal.shows(/6\. echo .*\nNumber or name \[github\]: /s);
    terminal.type("9\r");
    at = await terminal.shows(/Answer with a number from 1 to 6, or with a name\.\nNumber or name/, at);
    terminal.type("openai\r");
    at = await terminal.shows(/URL of the service \[https:\/\/api\.openai\.com\/v1\]: /, at);
    terminal.type("ftp://a\r");
    at = await terminal.shows(/Allowed: an http.*\n?.*\n?URL of the service/s, at);
    terminal.type(`${model.baseUrl}\r`);
    at = await terminal.shows(/Model: /, at);
    terminal.type("\r");
    at = await terminal.shows(/An answer is needed\.\nModel: /, at);
    terminal.type("m-2\r");
    at = await terminal.shows(/1\. per-user .*\n.*2\. shared .*\nNumber or name \[per-user\]: /, at);
    terminal.type("2\r");
    await terminal.shows(/The model replied: .*Say hello.*\nWrote .*\nYou trust this file/s, at);
    expect(await terminal.done).toBe(0);
    expect(contentOf(cwd)).toMatchObject({
      isolation: "shared",
      provider: { type: "openai", baseUrl: model.baseUrl, apiKey: { env: "MODEL_KEY" } },
      session: { model: "m-2" },
    });
  });

  it("init lists a found provider first, and after a failed prompt asks before it writes the file", async () => {
    const [no, yes] = [project(), project()];
    const env = { ANTHROPIC_API_KEY: "canary" };
    for (const [cwd, answer] of [
      [no, "n"],
      [yes, "y"],
    ] as const) {
      const url = `http://${addressOf(refusing)}`;
      const args = ["init", "--base-url", url, "--isolation", "per-user", "--model", "m"];
      await using terminal = new Terminal(fleet, args, { cwd, env });
      const at = await terminal.shows(
        /1\. anthropic +Anthropic \(ANTHROPIC_API_KEY is set\)\n.*Number or name \[anthropic\]: /s,
      );
      terminal.type("\r");
      // The key in ANTHROPIC_API_KEY is for the vendor's own address, so init does not suggest it for another address.
      const next = await terminal.shows(/variable that contains the service's key \[no key\]: /, at);
      terminal.type("\r");
      await terminal.shows(/The prompt failed\. Write the file anyway\? \[y\/N\] /, next);
      terminal.type(`${answer}\r`);
      expect(await terminal.done).toBe(answer === "y" ? 0 : 130);
      expect(terminal.text).not.toContain("canary");
    }
    expect(readdirSync(no)).toEqual([]);
    expect(contentOf(yes).provider).toEqual({ type: "anthropic", baseUrl: `http://${addressOf(refusing)}` });
  });

  it("init offers the models that the service lists, takes one by its number, and names no session that is gone", async () => {
    const cwd = project();
    const args = ["init", "--provider", "openai", "--base-url", `http://${addressOf(listing)}/v1`];
    await using terminal = new Terminal(fleet, [...args, "--isolation", "per-user"], { cwd, env: KEY });
    let at = await terminal.shows(/contains the service's key \[no key\]: /);
    terminal.type("MODEL_KEY\r");
    at = await terminal.shows(
      /lists these models\..*\n {2}1\. mini\n {2}2\. gpt-5\n {2}3\. large\nModel \[gpt-5\]: /,
      at,
    );
    terminal.type("3\r");
    await terminal.shows(/The turn failed: .* the model "large" .*Write the file anyway\? \[y\/N\] /s, at);
    expect(terminal.text).not.toMatch(/copilotfleet send|Warning/);
    terminal.type("y\r");
    expect(await terminal.done).toBe(0);
    expect(contentOf(cwd)).toMatchObject({ session: { model: "large" } });
  });

  it("init warns at once about an unset variable, and names no flag when it rejects a typed answer", async () => {
    const cwd = project();
    await using terminal = new Terminal(fleet, ["init", "--provider", "github", "--no-try"], { cwd });
    let at = await terminal.shows(/variable that contains your GitHub token: /);
    terminal.type("not a name\r");
    at = await terminal.shows(/Your answer is .*Allowed: .*GitHub token: /s, at);
    terminal.type("MY_TOKEN\r");
    at = await terminal.shows(/MY_TOKEN is not set in this shell\.\nModel \[chosen by the account\]: /, at);
    terminal.type("\r");
    await terminal.shows(/Number or name \[per-user\]: /, at);
    terminal.type("\r");
    expect(await terminal.done).toBe(0);
    expect(terminal.text).not.toContain("--token-env");
    expect(contentOf(cwd)).toMatchObject({ auth: { githubToken: { env: "MY_TOKEN" } } });
  });

  it("Ctrl-C or Ctrl-D at a question ends init, and init writes nothing", async () => {
    const cwd = project();
    await using first = new Terminal(fleet, ["init"], { cwd });
    await first.shows(/Number or name/);
    first.type("\x03");
    expect(await first.done).toBe(130);
    await using second = new Terminal(fleet, ["init"], { cwd });
    await second.shows(/Number or name/);
    second.type("\x04");
    expect(await second.done).toBe(2);
    expect(second.text).toContain("The input ended before all questions were answered. Nothing was written.");
    expect(readdirSync(cwd)).toEqual([]);
  });

  it("Ctrl-C during the prompt ends init and its server, and deletes its temporary folder", async () => {
    const cwd = project();
    const temporary = join(cwd, "temporary");
    mkdirSync(temporary);
    const args = ["init", "--provider", "openai", "--base-url", `http://${addressOf(silent)}/v1`, "--model", "m"];
    const asked = new Promise<void>((resolve) => {
      silent.on("request", (request) => {
        if (request.method === "POST") resolve();
        else request.destroy(); // do not wait for the list of models
      });
    });
    await using terminal = new Terminal(fleet, [...args, "--api-key-env", "MODEL_KEY", "--isolation", "per-user"], {
      cwd,
      env: { MODEL_KEY: "k", TMPDIR: temporary },
    });
    await asked;
    const [trial = ""] = readdirSync(temporary);
    const started = processesWith(`COPILOTFLEET_OWNER=${join(temporary, trial, "state")}`);
    expect(withoutSandboxes(started).length).toBe(1);
    terminal.type("\x03");
    expect(await terminal.done).toBe(130);
    expect(readdirSync(cwd)).toEqual(["temporary"]);
    expect(readdirSync(temporary)).toEqual([]);
    expect(processesWith(`COPILOTFLEET_OWNER=${join(temporary, trial, "state")}`)).toEqual([]);
  });
});
