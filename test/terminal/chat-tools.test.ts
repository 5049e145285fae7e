import { existsSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ChatTerminal, CTRL_C, CTRL_D } from "../fixtures/commands/chat.js";
import { TestFleet } from "../fixtures/commands/cli.js";
import { eventually } from "../fixtures/eventually.js";
import { type ScriptedModel, startScriptedModel } from "../fixtures/models/scripted-model.js";

const CHAT = ["chat", "--user", "alice"];
let model: ScriptedModel;
let fleet: TestFleet;

beforeAll(async () => {
  model = await startScriptedModel();
  fleet = new TestFleet({
    COPILOTFLEET_PROVIDER_TYPE: "openai",
    COPILOTFLEET_PROVIDER_BASE_URL: model.baseUrl,
    COPILOTFLEET_SESSION_APPROVE: "ask",
  });
});
afterAll(async () => {
  await fleet.end();
  await model[Symbol.asyncDispose]();
});

const tool = (name: string, args: object) => `!tool ${name} ${JSON.stringify(args)}`;
const bash = (command: string) => tool("bash", { command, description: "does something" });
const say = (text: string) => `!say ${Buffer.from(text).toString("base64")}`;

describe("tool calls in a chat", () => {
  it("a chat asks about a tool call, and runs the tool if the user allows it", async () => {
    await using chat = await ChatTerminal.open(fleet, CHAT, { columns: 100, rows: 40 });
    chat.type(`${bash("echo a; echo b")}\r`);
    await chat.screenShows(
      /Run this command\?\necho a; echo b\ndoes something\ny {2}yes, once\na .*exactly this command\nn {2}no$/,
    );
    await expect(await chat.stableRows()).toMatchFileSnapshot("../cli/screens/chat-permission.txt");
    chat.type("y");
    const shown = await chat.waits(/⏺ bash: echo a; echo b \(completed\)\n\ntool said: a/);
    expect(shown).not.toContain("yes, once");
  });

  it("if the user refuses a tool call, the tool does not run, and the model receives the refusal", async () => {
    const file = join(fleet.folder, "denied");
    await using chat = await ChatTerminal.open(fleet, CHAT, { columns: 140 });
    chat.type(`${bash(`touch ${file}; exit 3`)}\r`);
    await chat.screenShows(/n {2}no$/);
    chat.type("n");
    await chat.waits(/⏺ bash: touch .*\(refused.*\)\n\ntool said: The user rejected this tool call\./);
    expect(existsSync(file)).toBe(false);
  });

  it("if the user types the next prompt below a permission question, the keys do not answer the question", async () => {
    const file = join(fleet.folder, "typed");
    await using chat = await ChatTerminal.open(fleet, CHAT, { columns: 100 });
    chat.type(`${bash(`touch ${file}; exit 3`)}\r`);
    await chat.screenShows(/n {2}no$/);
    // No choice has the key "c", so this key and the keys that follow soon after it belong to the prompt.
    for (const key of "can you also") chat.type(key);
    await chat.screenShows(/n {2}no\nKeys go to the prompt until you stop typing\.$/);
    await chat.screenShows(/n {2}no$/);
    expect(existsSync(file)).toBe(false);
    chat.type("n");
    await chat.screenShows(/refused.*\n> can you also$/s);
    expect(existsSync(file)).toBe(false);
  });

  it("a permission for the whole session covers later tool calls of the same kind, but no call in another session", async () => {
    await using chat = await ChatTerminal.open(fleet, CHAT, { columns: 120 });
    const view = tool("view", { path: "/etc/hostname" });
    chat.type(`${view}\r`);
    await chat.screenShows(/Read \/etc\/hostname\?.*do not ask again about reading files/s);
    await chat.answer("a");
    await chat.waits(/⏺ view: \/etc\/hostname \(completed\)/);
    await chat.send(tool("view", { path: "/etc/passwd" }), /⏺ view: \/etc\/passwd \(completed\)/);
    chat.type(`${bash("id")}\r`);
    await chat.screenShows(/Run this command\?\nid/);
    await chat.answer("n");
    await chat.waits(/⏺ bash: id \(refused/);
    await chat.send("/new", /\/help lists/);
    const from = (await chat.rows()).length;
    chat.type(`${view}\r`);
    await eventually("the question", async () =>
      (await chat.rows()).slice(from).join("\n").includes("Read /etc/hostname?"),
    );
    await chat.answer("n");
    await chat.waits(/⏺ view: \/etc\/hostname \(refused/, from);
  });

  it("a long command is shown completely", async () => {
    await using chat = await ChatTerminal.open(fleet, CHAT, { columns: 100 });
    const lines = Array.from({ length: 40 }, (_, index) => `echo line-${index}`).join("\n");
    chat.type(`${bash(lines)}\r`);
    const shown = await chat.screenShows(/echo line-39.*n {2}no$/s);
    expect(shown).toContain("echo line-39");
    chat.type("n");
    await chat.waits(/⏺ bash: echo line-0 echo line-1 .*\(refused/);
  });

  it("Ctrl-C during a question cancels the turn without running the tool", async () => {
    const file = join(fleet.folder, "cancelled");
    await using chat = await ChatTerminal.open(fleet, CHAT);
    chat.type(`${bash(`touch ${file}; exit 3`)}\r`);
    await chat.screenShows(/n {2}no$/);
    chat.type(CTRL_C);
    await chat.waits(/⏺ bash: touch .*\(unfinished\)\nThe turn was cancelled\./);
    await chat.send("go on", /you said: go on/);
    expect(existsSync(file)).toBe(false);
  });

  it("a chat shows the exit code of a shell command that fails", async () => {
    await using chat = await ChatTerminal.open(fleet, CHAT);
    chat.type(`${bash("exit 3")}\r`);
    await chat.screenShows(/n {2}no$/);
    chat.type("y");
    await chat.waits(/⏺ bash: exit 3 \(exit code 3\)/);
  });

  it.each([
    ["all", / \(completed\)\n\ntool said: hi/],
    ["none", / \(refused.*\)\n\ntool said: .*Tools are not allowed here \(session\.approve is "none"\)/],
  ])("with session.approve %j, a chat does not ask about tool calls", async (approve, outcome) => {
    await using chat = await ChatTerminal.open(fleet, CHAT, {
      env: { COPILOTFLEET_SESSION_APPROVE: approve },
      columns: 140,
    });
    const shown = await chat.send(bash("echo hi; true"), outcome);
    expect(shown).not.toContain("Run this command?");
  });
});

describe("questions of the agent in a chat", () => {
  it.each([
    ["the number of a choice", "2", "User selected: blue"],
    ["a choice", "blue", "User selected: blue"],
    ["an answer of the user's own", "green", "green"],
  ])("a chat shows the agent's question and accepts %s as the answer", async (_, typed, answer) => {
    await using chat = await ChatTerminal.open(fleet, CHAT);
    chat.type(`${tool("ask_user", { question: "Which colour?", choices: ["red", "blue"] })}\r`);
    await chat.screenShows(/Which colour\?\n1\. red\n2\. blue\nA number or your own answer:\n\?$/);
    chat.type(typed);
    await chat.screenShows(new RegExp(`\\? ${typed}$`));
    chat.type("\r");
    await chat.waits(new RegExp(`⏺ ask_user: Which colour\\? \\(completed\\)\n\ntool said: .*${answer}`));
  });
});

describe("two chats in one session", () => {
  it("when two chats use one session, only the chat that sent a prompt shows the questions of its turn", async () => {
    const id = "two-chats";
    await fleet.create("alice", id);
    const open = async () => await ChatTerminal.open(fleet, ["chat", id, "--user", "alice"], { columns: 100 });
    await using first = await open();
    await using second = await open();
    first.type(`${tool("ask_user", { question: "Which colour?", choices: ["red", "blue"] })}\r`);
    await first.screenShows(/A number or your own answer:\n\?$/);
    first.type("2");
    await first.screenShows(/\? 2$/);
    first.type("\r");
    await first.waits(/⏺ ask_user: Which colour\? \(completed\)\n\ntool said: .*User selected: blue/);
    // The second chat's prompt has to wait until the first chat's turn is over.
    first.type(`!hold first ${bash("echo a; echo b")}\r`);
    await eventually("the turn", () => model.shown("!hold first") > 0);
    second.type("!hold second\r");
    await second.screenShows(/Waiting for "two-chats"/);
    model.letGo("first");
    await first.answer("y");
    await first.waits(/⏺ bash: echo a; echo b \(completed\)/);
    await eventually("the turn", () => model.shown("!hold second") > 0);
    // If the second chat showed the question of the first chat's turn, the question would hide this row.
    const shown = await second.screenShows(/Waiting for the model/);
    expect(shown).not.toMatch(/Which colour|Run this command/);
    model.letGo("second");
    await second.waits(/you said: !hold second/);
  });

  it("a member's chat does not show the questions of a turn that the owner started", async () => {
    const id = "owner-and-member";
    await fleet.ok(["create", "--user", "alice", "--id", id, "--collaborative", "--member", "bob"]);
    await using owner = await ChatTerminal.open(fleet, ["chat", id, "--user", "alice"], { columns: 100 });
    await using _member = await ChatTerminal.open(fleet, ["chat", id, "--user", "bob"], { columns: 100 });
    owner.type(`${bash("echo a; echo b")}\r`);
    await owner.screenShows(/Run this command\?/);
    await owner.answer("y");
    await owner.waits(/⏺ bash: echo a; echo b \(completed\)/);
  });
});

describe("output of a malicious model", () => {
  it("a chat shows escape sequences in a reply, a tool's name and its arguments as text, and does not obey them", async () => {
    await using chat = await ChatTerminal.open(fleet, CHAT, { columns: 100, rows: 40 });
    const evil = "\x1b]52;c;ZXZpbA==\x07 \x1b[2J\x1b[H \x9b31m \x1b]0;title\x07 \x1b[?1049h a\u202eb";
    await chat.send(
      say(`Text ${evil}\n\n\`\`\`\n${evil}\n\`\`\`\n| ${evil} |\n|-|\n| x |`),
      /Text \\u\{1b\}\]52;c;ZXZpbA==\\u\{7\}/,
    );
    chat.type(`${bash(`true # ${evil}`)}\r`);
    await chat.screenShows(/Run this command\?\ntrue # \\u\{1b\}\]52/);
    await chat.answer("n");
    await chat.waits(/refused/);
    await chat.send("/history", /Text \\u\{1b\}/);
    for (const sequence of ["\x1b]52", "\x1b]0", "\x1b[2J", "\x1b[?1049h", "\x9b", "\u202e"]) {
      expect(chat.raw.includes(sequence), JSON.stringify(sequence)).toBe(false);
    }
  });

  it("a reply of 1 MB is shown completely, and the chat goes on", async () => {
    await using chat = await ChatTerminal.open(fleet, CHAT, { columns: 100 });
    const words = 110_000;
    const shown = await chat.send(`!words ${words}`, new RegExp(`word${words - 1}\\n`));
    const found = new Set(shown.match(/\bword\d+\b/g));
    expect(found.size).toBe(words);
    await chat.send("go on", /you said: go on/);
    chat.type(CTRL_D);
    expect(await chat.done).toBe(0);
  });

  it("Ctrl-C cancels the turn while a long reply arrives", async () => {
    await using chat = await ChatTerminal.open(fleet, CHAT, { columns: 100 });
    chat.type("!words 200000\r");
    await chat.screenShows(/word100\b/);
    chat.type(CTRL_C);
    await chat.waits(/The turn was cancelled\./);
    await chat.send("go on", /you said: go on/);
  });
});
