import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ChatTerminal, CTRL_C } from "../fixtures/commands/chat.js";
import { TestFleet } from "../fixtures/commands/cli.js";
import { ScreenTerminal } from "../fixtures/commands/emulator.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { eventually } from "../fixtures/eventually.js";
import { type Serving, serve } from "../fixtures/fleets/serve.js";
import { type ScriptedModel, startScriptedModel } from "../fixtures/models/scripted-model.js";
import { CuttingProxy } from "../fixtures/store/cutting-proxy.js";

let model: ScriptedModel;
let fleet: TestFleet;
let serving: Serving;
let door: string;
let token: string;
/** A state folder like the one on a user's own machine, where no fleet runs. */
let laptop: TestFleet;

async function serveAgain(): Promise<void> {
  serving = await serve(fleet, { env: { COPILOTFLEET_SERVE_LISTEN: door ?? "127.0.0.1:0" } });
}

beforeAll(async () => {
  model = await startScriptedModel();
  fleet = new TestFleet({
    COPILOTFLEET_PROVIDER_TYPE: "openai",
    COPILOTFLEET_PROVIDER_BASE_URL: model.baseUrl,
    COPILOTFLEET_SESSION_APPROVE: "ask",
  });
  // The token names the user, so the default user must have no influence.
  laptop = new TestFleet({ COPILOTFLEET_PROVIDER_TYPE: undefined, COPILOTFLEET_USER: "bob" });
  door = `127.0.0.1:${fleet.ports.to}`;
  await serveAgain();
  ({ token } = await fleet.json<{ token: string }>(["token", "issue", "--user", "alice", "--ttl", "1h"]));
});
afterAll(async () => {
  await serving.end();
  await fleet.end();
  await laptop.end();
  await model[Symbol.asyncDispose]();
});

const arguments_ = (session: string[] = []) => ["chat", ...session, "--to", door, "--token-env", "FLEET_TOKEN"];

async function chat(session: string[] = []): Promise<ChatTerminal> {
  return await ChatTerminal.open(laptop, arguments_(session), { columns: 140, env: { FLEET_TOKEN: token } });
}

describe("a chat through a front door", () => {
  it("chat --to creates and resumes sessions of the token's user, and asks about tools", async () => {
    await using first = await chat();
    await first.statusShows(new RegExp(`^model \\S+ · front door ${door} · session [0-9a-f-]{36}$`));
    const shown = await first.send("hello", /you said: hello/);
    expect(shown).not.toContain(token);
    const id = /session ([0-9a-f-]{36})/.exec((await first.rows()).join(" "))?.[1] ?? "";
    expect(await fleet.json(["list", "--user", "alice"])).toMatchObject({ sessions: [{ id, owner: "alice" }] });
    first.type('!tool bash {"command":"echo in; echo the fleet","description":"d"}\r');
    await first.screenShows(/Run this command\?\necho in; echo the fleet/);
    await first.answer("y");
    await first.waits(/⏺ bash: echo in; echo the fleet \(completed\)\n\ntool said: in/);
    first.type("/exit\r");
    expect(await first.done).toBe(0);
    const command = `copilotfleet chat ${id} --to ${door} --token-env FLEET_TOKEN`;
    expect((await first.rows()).join("")).toContain(command);

    await using again = await chat([id]);
    await again.waits(/> hello\n\nyou said: hello\n\n> !tool.*⏺ bash: echo in; echo the fleet \(completed\)/);
    await again.send("/model other-model", /The model is other-model\./);
    await again.statusShows(/^model other-model · front door /);
    expect(await fleet.json(["list", "--user", "alice"])).toMatchObject({ sessions: [{ id, model: "other-model" }] });
    await again.send("/new", /Continue this session/);
    await again.send("/resume", new RegExp(`${id} {2}used \\d+s ago`));
    again.type("\x1b[A\x1b[A");
    await again.screenShows(/> \/new$/);
  });

  it("chat --to reads its token from a file, and refuses a token on the command line", async () => {
    const file = join(laptop.folder, "token");
    writeFileSync(file, `${token}\n`, { mode: 0o600 });
    await using terminal = await ChatTerminal.open(laptop, ["chat", "--to", door, "--token-file", file]);
    await terminal.send("hello", /you said: hello/);
    const refusals: [string[], RegExp][] = [
      [["--to", door, "--token-env", token], /--token-env takes the name of a variable/],
      [["--to", door], /--to needs --token-env VAR or --token-file FILE\./],
      [["--to", door, "--token-env", "T", "--user", "alice"], /Give either --user USER or --to HOST:PORT\./],
      [["--to", "nowhere", "--token-env", "T"], /--to is "nowhere", which is not host:port\. Allowed: host:port/],
    ];
    for (const [flags, message] of refusals) {
      const refused = new Terminal(laptop, ["chat", ...flags], { columns: 200, env: { T: token } });
      expect(await refused.done).toBe(2);
      expect(refused.text).toMatch(message);
      expect(refused.text).not.toContain(token);
    }
  });

  it("chat --to exits with 5 if the front door refuses its token, and with 7 if there is no front door", async () => {
    const env = { FLEET_TOKEN: `${token.slice(0, -3)}abc` };
    const refused = new Terminal(laptop, arguments_(), { columns: 200, env });
    expect(await refused.done).toBe(5);
    expect(refused.text).toMatch(
      /The front door at 127\.0\.0\.1:\d+ refused the token\. \[FLEET_TOKEN_REFUSED\]\s+Hint: Ask/,
    );
    expect(refused.text).not.toContain(env.FLEET_TOKEN);
    const nowhere = ["chat", "--to", "127.0.0.1:9", "--token-env", "FLEET_TOKEN"];
    const missing = new Terminal(laptop, nowhere, { columns: 200, env: { FLEET_TOKEN: token } });
    expect(await missing.done).toBe(7);
    expect(missing.text).toMatch(/The front door at 127\.0\.0\.1:9 cannot be used: .*\[FLEET_SERVER_UNREACHABLE\]/);
  });

  it("after the user's server died in a turn, chat --to runs the next prompt", async () => {
    await using terminal = await chat();
    await terminal.send("one", /you said: one/);
    terminal.type("!hold server-dies\r");
    await eventually("the turn", () => model.shown("!hold server-dies") > 0);
    process.kill(await fleet.pidOf("alice"), "SIGKILL");
    await terminal.waits(/The turn failed: The server ended during the turn\./);
    await terminal.send("two", /you said: two/);
  });

  it("chat --to reports that the front door died in a turn, and connects again for the next prompt", async () => {
    await using terminal = await chat();
    await terminal.send("one", /you said: one/);
    terminal.type("!pause door-dies the first words\r");
    await terminal.screenShows(/you said: .*the first/);
    serving.kill("SIGKILL");
    await serving.done;
    await terminal.waits(/The connection to the front door ended during the turn\..*Look with \/history/);
    await serveAgain();
    await terminal.send("two", /you said: two/);
    await terminal.send("/history", /> one.*> !pause door-dies.*> two/);
    expect(model.shown("!pause door-dies")).toBe(1);
  });

  it("Ctrl-C puts a prompt that chat --to could not send back into the input, and Enter sends it later", async () => {
    await using terminal = await chat();
    await terminal.send("one", /you said: one/);
    await serving.end();
    terminal.type("later\r");
    await terminal.screenShows(/> later\n.*Waiting for the model/s);
    terminal.type(CTRL_C);
    await terminal.screenShows(/The turn was cancelled\.\n\n> later$/);
    await serveAgain();
    terminal.type("\r");
    await terminal.waits(/you said: later/);
    expect(model.shown("later")).toBe(1);
  });

  it("if Ctrl-C ends a chat that is still connecting to the front door, the exit code is 130", async () => {
    const proxy = await CuttingProxy.start(Number(door.split(":")[1]));
    const open = proxy.hold();
    const args = ["chat", "--to", `127.0.0.1:${proxy.port}`, "--token-env", "FLEET_TOKEN"];
    await using terminal = new ScreenTerminal(laptop, args, { columns: 140, env: { FLEET_TOKEN: token } });
    await terminal.screenShows(/Opening the session \(\d+ s\)\. Ctrl-C cancels\./);
    terminal.type(CTRL_C);
    expect(await terminal.done).toBe(130);
    open();
    await proxy.end();
  });

  it("chats with different tokens at one front door share a prompt history, whose file contains no token or digest", async () => {
    await using first = await chat();
    await first.send("the same history", /you said: the same history/);
    const next = await fleet.json<{ token: string }>(["token", "issue", "--user", "alice", "--ttl", "1h"]);
    const env = { FLEET_TOKEN: next.token };
    await using second = await ChatTerminal.open(laptop, arguments_(), { columns: 140, env });
    second.type("\x1b[A");
    await second.screenShows(/> the same history$/);
    const digests = [token, next.token].map((each) => createHash("sha256").update(each).digest("hex").slice(0, 16));
    const folder = join(laptop.root, "chat");
    for (const name of readdirSync(folder)) {
      const text = `${name}\n${readFileSync(join(folder, name), "utf8")}`;
      for (const secret of [token, next.token, ...digests]) expect(text).not.toContain(secret);
    }
  });
});
