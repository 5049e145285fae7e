import { describe, expect, it } from "vitest";
import { testFleet } from "../fixtures/commands/cli.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { eventually } from "../fixtures/eventually.js";

const fleet = testFleet();
const CTRL_C = "\x03";
const CTRL_D = "\x04";
/** A pasted text as a terminal in bracketed-paste mode sends it. */
const pasted = (text: string) => `\x1b[200~${text}\x1b[201~`;

/** Starts a chat on a terminal, and resolves when the chat waits for a prompt. */
async function chat(session: string): Promise<Terminal> {
  const terminal = new Terminal(fleet, ["resume", session, "--user", "alice"], { columns: 120 });
  await terminal.shows(/Ctrl-C cancels a turn\. Ctrl-D ends the chat\.\n.*> $/s);
  return terminal;
}

async function turnsOf(session: string): Promise<number> {
  const reply = await fleet.send("alice", session, "count");
  return Number(/^\[turn (\d+)\]/.exec(reply)?.[1]) - 1;
}

describe("a chat on a terminal", () => {
  it.each([
    ["as a bracketed paste in pieces", ["\x1b[20", "0~one\r\n\r", "\ttwo(3);\rthree\x1b[2", "01~", "\r"]],
    ["as a bracketed paste", [pasted("one\n\n\ttwo(3);\nthree"), "\r"]],
    ["at once without paste markers", ["one\r\r\ttwo(3);\rthree\r"]],
  ])("a chat takes several lines that arrive %s as one prompt, and keeps the blank lines", async (how, pieces) => {
    const id = how.replaceAll(/\W+/g, "-");
    await fleet.create("alice", id);
    await using terminal = await chat(id);
    for (const piece of pieces) {
      const shown = terminal.raw.length;
      terminal.type(piece);
      // Wait until the chat has read this piece, so that it gets the next piece separately.
      if (/[a-z]/.test(piece)) await eventually("its echo", () => terminal.raw.length > shown);
    }
    await terminal.shows(/\[turn 1\] one\n\n\ttwo\(3\);\nthree\n.*> $/s);
    terminal.type("next\r");
    await terminal.shows(/\[turn 2\] next\n.*> $/s);
    terminal.type(CTRL_D);
    expect(await terminal.done).toBe(0);
    // The chat turns bracketed-paste mode on at its start and off at its end.
    const [on, off] = ["\x1b[?2004h", "\x1b[?2004l"].map((mode) => terminal.raw.indexOf(mode));
    expect(on).toBeGreaterThan(0);
    expect(off).toBeGreaterThan(on ?? 0);
    expect(await turnsOf(id)).toBe(2);
  });

  it("Ctrl-C during a turn of a chat cancels only that turn, and the chat continues in the same session", async () => {
    await fleet.create("alice", "cancelled");
    await using terminal = await chat("cancelled");
    terminal.type("!delay 60000 never\r");
    await eventually("the turn", async () => await fleet.inTurn("alice", "cancelled"));
    terminal.type(CTRL_C);
    const seen = await terminal.shows(/\nThe turn was cancelled\.\n.*> $/s);
    terminal.type("still there\r");
    await terminal.shows(/\[turn \d\] still there\n.*> $/s, seen);
    expect(terminal.text).not.toContain("never\n[");
    terminal.type(CTRL_D);
    expect(await terminal.done).toBe(0);
  });

  it("Ctrl-C in a chat clears a half-typed line, and Ctrl-C twice on an empty line ends the chat", async () => {
    await fleet.create("alice", "idle");
    await using terminal = await chat("idle");
    terminal.type("not this");
    await terminal.shows(/not this/);
    terminal.type(CTRL_C);
    terminal.type("but this\r");
    const seen = await terminal.shows(/\[turn 1\] but this\n.*> $/s);
    terminal.type(CTRL_C);
    const told = await terminal.shows(/Ctrl-C again, or Ctrl-D, ends the chat\.\n.*> $/s, seen);
    terminal.type("on\r");
    const later = await terminal.shows(/\[turn 2\] on\n.*> $/s, told);
    terminal.type(CTRL_C);
    await terminal.shows(/Ctrl-C again/, later);
    terminal.type(CTRL_C);
    expect(await terminal.done).toBe(0);
  });

  it("a chat takes a line that was typed during a turn as the next prompt", async () => {
    await fleet.create("alice", "early");
    await using terminal = await chat("early");
    terminal.type("!delay 1500 slow\r");
    await eventually("the turn", async () => await fleet.inTurn("alice", "early"));
    terminal.type("early\r");
    await terminal.shows(/\[turn 1\].*slow\n.*\[turn 2\] early\n.*> $/s);
    terminal.type(CTRL_D);
    expect(await terminal.done).toBe(0);
  });

  it("a chat shows why a turn cannot begin in a locked session, and takes the next prompt after the unlock", async () => {
    await fleet.create("alice", "locked");
    const { lease } = await fleet.json<{ lease: { token: string } }>(["lock", "locked", "--user", "alice"]);
    await using terminal = await chat("locked");
    terminal.type("hello\r");
    const seen = await terminal.shows(
      /Session "locked" is locked by "alice" .* \[FLEET_SESSION_LOCKED\]\n {2}Try: copilotfleet unlock.*> $/s,
    );
    await fleet.ok(["unlock", "locked", "--token", lease.token]);
    terminal.type("again\r");
    await terminal.shows(/\[turn 1\] again\n.*> $/s, seen);
    terminal.type(CTRL_D);
    expect(await terminal.done).toBe(0);
  });
});

describe("an error after half a reply", () => {
  it.each([
    ["in a chat", ["resume", "SESSION", "--user", "alice"]],
    ["of send", ["send", "SESSION", "!delay 8000 a b c d e f g h", "--user", "alice"]],
  ])("an error %s after half a reply starts on a new line", async (where, args) => {
    const id = where.replaceAll(" ", "-");
    await fleet.create("alice", id);
    const terminal = new Terminal(
      fleet,
      args.map((arg) => (arg === "SESSION" ? id : arg)),
    );
    await using _ = terminal;
    if (args[0] === "resume") {
      await terminal.shows(/> $/);
      terminal.type("!delay 8000 a b c d e f g h\r");
    }
    await terminal.shows(/\[turn 1\]/);
    process.kill(await fleet.pidOf("alice"), "SIGKILL");
    await terminal.shows(/\[turn 1\][^\n]*\n(?:Error: )?The server ended/);
    terminal.type(CTRL_D);
    await terminal.done;
  });

  it("Ctrl-C during a send leaves the cursor at the beginning of a line, and exits with 130", async () => {
    await fleet.create("alice", "interrupted");
    await using terminal = new Terminal(fleet, ["send", "interrupted", "!delay 60000 x", "--user", "alice"]);
    await eventually("the turn", async () => await fleet.inTurn("alice", "interrupted"));
    terminal.type(CTRL_C);
    expect(await terminal.done).toBe(130);
    // If the turn has taken less than a second, there is no progress line to remove, and the terminal's echo stays.
    expect(["", "^C"]).toContain(terminal.screen.lines.join("\n"));
    expect(terminal.screen).toMatchObject({ column: 0, isCursorVisible: true });
  });
});
