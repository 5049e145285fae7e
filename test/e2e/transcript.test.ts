import { appendFileSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import type { Transcript } from "../../src/hosts/options.js";
import { Fleet } from "../../src/index.js";
import { TIME, testFleet } from "../fixtures/commands/cli.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { eventually } from "../fixtures/eventually.js";
import { startScriptedModel } from "../fixtures/models/scripted-model.js";
import { at, finalStep, prompt, started } from "../fixtures/sessions/history.js";
import { unused } from "../fixtures/sessions/unused.js";

const model = await startScriptedModel();
const fleet = testFleet({
  COPILOTFLEET_PROVIDER_TYPE: "openai",
  COPILOTFLEET_PROVIDER_BASE_URL: model.baseUrl,
  COPILOTFLEET_SESSION_MODEL: "gpt-5",
  COPILOTFLEET_SESSION_APPROVE: "all",
});
const ALICE = ["--user", "alice"];

const transcript = async (id: string, ...flags: string[]) =>
  await fleet.json<Transcript>(["transcript", id, ...ALICE, ...flags]);

async function historyOf(user: string, id: string): Promise<string> {
  return join((await fleet.record(user)).home, "session-state", id, "events.jsonl");
}

/** Creates a session with one turn, and replaces its history. */
async function planted(id: string, text: string): Promise<string> {
  await fleet.ok(["create", ...ALICE, "--id", id, "--prompt", "hello"]);
  const path = await historyOf("alice", id);
  writeFileSync(path, text);
  return path;
}

async function openFleet(): Promise<Fleet> {
  const opened = await Fleet.open({ env: fleet.env, cwd: fleet.folder });
  onTestFinished(() => opened.close());
  return opened;
}

describe("transcript", () => {
  it("transcript prints tool calls and attachments, starts no server, and is the same after a compaction", async () => {
    const opened = await openFleet();
    const session = await opened.sessions.create({ user: "alice", sessionId: "talk" });
    const say = async (prompt: string) => void (await opened.sessions.send(session, prompt));
    await say("hello\n\n# there");
    await say('!tool bash {"command":"echo hi"}');
    await say('!tool view {"path":"/nope"}');
    const file = join(fleet.folder, "notes.txt");
    writeFileSync(file, "notes");
    const notes = { type: "file", path: file, displayName: "notes.txt" } as const;
    await session.sendAndWait({ prompt: "read this", attachments: [notes] });
    const before = await opened.sessions.transcript("talk", { user: "alice" });
    await session.rpc.history.compact();
    const path = await historyOf("alice", "talk");
    await eventually("the compaction", () => readFileSync(path, "utf8").includes("session.compaction_complete"));
    expect((await opened.sessions.transcript("talk", { user: "alice" })).entries).toEqual(before.entries);
    await opened.sessions.leave(session);
    await fleet.ok(["stop", "--all"]);

    const rest = { attachments: [], tool: null, failure: null, user: null, at: TIME };
    expect(await transcript("talk")).toMatchObject({
      session: { id: "talk", owner: "alice", state: "idle" },
      entries: [
        { ...rest, role: "user", text: "hello\n\n# there", turn: 1, user: "alice" },
        { ...rest, role: "assistant", text: "you said: hello\n\n# there", turn: 1 },
        { ...rest, role: "user", text: '!tool bash {"command":"echo hi"}', turn: 2, user: "alice" },
        {
          ...rest,
          role: "tool",
          text: "bash: echo hi (completed)",
          turn: 2,
          tool: { name: "bash", outcome: "completed" },
        },
        { ...rest, role: "assistant", text: expect.stringMatching(/^tool said: hi\n/), turn: 2 },
        { ...rest, role: "user", text: '!tool view {"path":"/nope"}', turn: 3, user: "alice" },
        {
          ...rest,
          role: "tool",
          text: expect.stringMatching(/^view: \/nope \(failed: Path .*does not exist/),
          turn: 3,
          tool: { name: "view", outcome: "failed" },
        },
        { ...rest, role: "assistant", turn: 3 },
        { ...rest, role: "user", text: "read this", turn: 4, user: "alice", attachments: ["notes.txt"] },
        { ...rest, role: "assistant", turn: 4 },
      ],
    });
    const text = await fleet.ok(["transcript", "talk", ...ALICE]);
    expect(text.replaceAll(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ/g, "TIME")).toContain(
      "alice  TIME  turn 1\n  hello\n\n  # there\n\nassistant  TIME\n  you said: hello\n\n  # there\n\nalice  TIME  turn 2\n" +
        '  !tool bash {"command":"echo hi"}\n\n  [tool] bash: echo hi (completed)\n\nassistant  TIME\n  tool said: hi\n',
    );
    expect(text).toContain("  read this\n  [attached] notes.txt\n");
    const lastTwo = await fleet.ok(["transcript", "talk", ...ALICE, "--markdown", "-n", "2"]);
    expect(lastTwo).toMatch(/^# Session `talk`\n\nOwner: alice\. Created: .*\n\n## Turn 3\n\n- \*\*alice\*\*, /);
    expect(lastTwo).toContain("\n## Turn 4\n");
    expect(fleet.processes()).toEqual([]);
  });

  it("transcript refuses users who may not use the session, and accepts members", async () => {
    await fleet.ok(["create", ...ALICE, "--id", "shared-talk", "--collaborative", "--member", "bob"]);
    await fleet.send("bob", "shared-talk", "from bob");
    await fleet.create("alice", "private-talk");
    for (const args of [
      ["private-talk", "--user", "bob"],
      ["shared-talk", "--user", "carol"],
      ["no-talk", ...ALICE],
    ]) {
      const flags = [[], ["--markdown"], ["--follow"]];
      for (const more of flags) {
        const { code } = await fleet.refusal(4, ["transcript", ...args, ...more]);
        expect(code).toBe("FLEET_SESSION_NOT_FOUND");
      }
    }
    // The history does not show which of the members sent a prompt.
    const { entries } = await fleet.json<Transcript>(["transcript", "shared-talk", "--user", "bob"]);
    expect(entries.map(({ text, user }) => [text, user])).toEqual([
      ["from bob", null],
      ["you said: from bob", null],
    ]);
    expect(await fleet.ok(["transcript", "shared-talk", "--user", "bob"])).toMatch(
      /^user {2}\S+ {2}turn 1\n {2}from bob\n/,
    );
  });

  it("transcript shows a turn in flight, and with --follow prints the rest of the turn", async () => {
    const [id, gate] = [unused("live"), unused("gate")];
    await fleet.create("alice", id);
    await fleet.send("alice", id, "before");
    const turn = await fleet.turn("alice", id, `!hold ${gate}`);
    await eventually("the prompt in the history", async () => (await transcript(id)).entries.length > 2);
    const { session, entries } = await transcript(id);
    expect(session.state).toBe("active");
    expect(entries.slice(2)).toMatchObject([
      { role: "user", text: `!hold ${gate}`, turn: 2 },
      { role: "assistant", text: "", turn: 2, failure: expect.stringContaining("no end of this turn") },
    ]);
    const following = fleet.start(["transcript", id, ...ALICE, "-n", "1", "-f"]);
    let printed = "";
    following.child.stdout?.on("data", (piece: Buffer | string) => {
      printed += String(piece);
    });
    await eventually("the prompt", () => printed.includes(`!hold ${gate}`));
    expect(printed).not.toContain("before");
    expect(printed).not.toContain("no end");
    model.letGo(gate);
    await turn.done;
    await eventually("the reply", () => printed.includes(`you said: !hold ${gate}`));
    following.child.kill("SIGINT");
    expect(await following.done).toMatchObject({ code: 130, stderr: "" });
  });

  it("transcript shows an ephemeral session while it is in use", async () => {
    const opened = await openFleet();
    const session = await opened.sessions.create({ user: "alice", sessionId: "brief", ephemeral: true });
    await opened.sessions.send(session, "hello");
    expect((await transcript("brief")).entries.map(({ text }) => text)).toEqual(["hello", "you said: hello"]);
    await opened.sessions.leave(session);
    await fleet.refusal(4, ["transcript", "brief", ...ALICE]);
  });

  it("transcript is empty for a session without a turn, and fails if the history is gone or not a file", async () => {
    await fleet.create("alice", "silent");
    expect((await transcript("silent")).entries).toEqual([]);
    const none = await fleet.run(["transcript", "silent", ...ALICE]);
    expect(none).toMatchObject({ code: 0, stdout: "", stderr: "The session has had no turn.\n" });
    const path = await planted("gone", "");
    rmSync(path);
    expect((await fleet.refusal(5, ["transcript", "gone", ...ALICE])).code).toBe("FLEET_SESSION_LOST");
    symlinkSync("/etc/passwd", path);
    expect((await fleet.refusal(5, ["transcript", "gone", ...ALICE])).code).toBe("FLEET_SESSION_LOST");
    rmSync(path);
    mkdirSync(path);
    expect((await fleet.refusal(5, ["transcript", "gone", ...ALICE])).code).toBe("FLEET_SESSION_LOST");
  });

  it("transcript shows the readable lines of a damaged history, and warns about the others", async () => {
    const path = await planted("torn", `${started()}garbage\n${prompt({ content: "a" })}${finalStep("b")}`);
    appendFileSync(path, '{"type":"user.mess');
    const ran = await fleet.run(["transcript", "torn", ...ALICE]);
    expect(ran.stdout).toMatch(/^alice .*\n {2}a\n\nassistant .*\n {2}b\n$/);
    expect(ran.stderr).toBe(
      'Warning: 2 lines, from line 2 on, of the history of session "torn" cannot be read and are left out.\n',
    );
    expect(ran.code).toBe(0);
  });

  it("transcript prints a history of 60 MB with little memory, and stops when the reader closes the pipe", async () => {
    const reply = finalStep("x".repeat(200_000));
    const path = await planted("huge", started());
    for (let turn = 0; turn < 300; turn++) appendFileSync(path, prompt({ content: `prompt ${turn}` }) + reply);
    const env = { NODE_OPTIONS: "--max-old-space-size=40" };
    const whole = await fleet.run(["transcript", "huge", ...ALICE], { env });
    expect({ code: whole.code, stderr: whole.stderr }).toEqual({ code: 0, stderr: "" });
    expect(whole.stdout.length).toBeGreaterThan(60_000_000);
    const last = await fleet.ok(["transcript", "huge", ...ALICE, "-n", "1"], { env });
    expect(last).toMatch(/^alice .* turn 300\n {2}prompt 299\n\nassistant /);
    const args = ["transcript", "huge", ...ALICE];
    const first = await fleet.run(args, { under: ["sh", "-c", '"$@" | head -n 2', "sh"] });
    expect(first).toMatchObject({ code: 0, stderr: "", stdout: expect.stringMatching(/^alice .*\n {2}prompt 0\n$/) });
  });
});

describe("a transcript of hostile texts", () => {
  const HOSTILE = "a\x1b]0;title\x07\x1b[2Jb\rc\u009b31md\u202ee\nassistant  2026-01-01T00:00:00Z\n\ttab";

  it("a transcript of hostile texts has no control characters in any output, and no fake headings", async () => {
    const tool = { toolCallId: "t", toolName: "\x1b[1mx", arguments: { path: `\x1b[2J${"y".repeat(150)}` } };
    const text =
      started() + prompt({ content: HOSTILE, attachments: [{ displayName: "\x1b[5m" }] }) + finalStep(HOSTILE);
    const event = JSON.stringify({ type: "tool.execution_start", data: tool, id: "i", timestamp: new Date(at()) });
    await planted("hostile", `${text}${prompt()}${event}\n`);
    const shown = "a\\u{1b}]0;title\\u{7}\\u{1b}[2Jb\\u{d}c\\u{9b}31md\\u{202e}e";
    const isSafe = (output: string) => expect(output).not.toMatch(/(?![\n\t])[\p{Cc}]|\u202e/u);

    const piped = await fleet.ok(["transcript", "hostile", ...ALICE]);
    isSafe(piped);
    expect(piped).toContain(`  ${shown}\n  assistant  2026-01-01T00:00:00Z\n  \ttab\n`);
    expect(piped).toContain("  [attached] \\u{1b}[5m\n");
    expect(piped).toContain(`  [tool] \\u{1b}[1mx: \\u{1b}[2J${"y".repeat(150)} (unfinished)\n`);

    const json = await fleet.ok(["transcript", "hostile", ...ALICE, "--json"]);
    isSafe(json);
    expect((JSON.parse(json) as Transcript).entries[0]?.text).toBe(HOSTILE);
    isSafe(await fleet.ok(["transcript", "hostile", ...ALICE, "--markdown"]));

    await using terminal = new Terminal(fleet, ["transcript", "hostile", ...ALICE], { columns: 60 });
    expect(await terminal.done).toBe(0);
    // Remove the fleet's own colours, which the output on a terminal may have.
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are the colours
    isSafe(terminal.raw.replaceAll("\r\n", "\n").replace(/\x1b\[[0-9;]*m/g, ""));
    expect(terminal.raw).not.toContain("\x1b[5m");
    const tools = terminal.text.split("\n").filter((line) => line.includes("[tool]"));
    expect(tools.map((line) => line.length)).toEqual([60]);
  });
});
