import { randomUUID } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { SessionView } from "../../src/sessions/view.js";
import { ChatTerminal, CTRL_C, CTRL_D, pasted } from "../fixtures/commands/chat.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { COMMAND } from "../fixtures/commands/command.js";
import { ScreenTerminal } from "../fixtures/commands/emulator.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { eventually } from "../fixtures/eventually.js";
import { isRunning } from "../fixtures/processes.js";

const fleet = testFleet();
const CHAT = ["chat", "--user", "alice"];

async function sessionsOf(user: string): Promise<string[]> {
  return (await fleet.json<{ sessions: SessionView[] }>(["list", "--user", user])).sessions.map(({ id }) => id);
}

/** Returns how many turns a session has had. Runs one more turn, because the echo model's reply contains the number. */
async function turnsOf(session: string): Promise<number> {
  const reply = await fleet.send("alice", session, "count");
  return Number(/^\[turn (\d+)\]/.exec(reply)?.[1]) - 1;
}

describe("a chat on a terminal", () => {
  it("chat begins a new session, renders replies, and shows at its end how to continue", async () => {
    const before = await sessionsOf("alice");
    await using chat = await ChatTerminal.open(fleet, CHAT);
    await chat.send("hello **you**", /\[turn 1\] hello you/);
    await chat.send("again", /\[turn 2\] again/);
    chat.type(CTRL_D);
    expect(await chat.done).toBe(0);
    const [id] = (await sessionsOf("alice")).filter((each) => !before.includes(each));
    expect((await chat.rows()).join("")).toContain(`Continue this session: copilotfleet chat ${id} --user alice`);
    expect(await turnsOf(id ?? "")).toBe(2);
  });

  it("chat deletes its new session at the end if the user sent no prompt", async () => {
    const before = await sessionsOf("alice");
    await using chat = await ChatTerminal.open(fleet, CHAT);
    expect(await sessionsOf("alice")).toHaveLength(before.length + 1);
    chat.type("/exit\r");
    expect(await chat.done).toBe(0);
    expect((await chat.rows()).join("\n")).toMatch(/The session had no prompt, so it is deleted\.$/);
    expect(await sessionsOf("alice")).toEqual(before);
  });

  it.each([[["chat"]], [["resume"]]])(
    "%j continues a session and shows its last three turns",
    async ([command = ""]) => {
      const id = `last-turns-${command}`;
      await fleet.create("alice", id);
      for (const prompt of ["one", "two", "three", "four"]) await fleet.send("alice", id, prompt);
      await using chat = await ChatTerminal.open(fleet, [command, id, "--user", "alice"]);
      const shown = await chat.waits(/1 earlier turn: \/history shows everything\..*> two.*\[turn 4\] four/);
      expect(shown).not.toContain("[turn 1]");
      await chat.send("/history", /\[turn 1\] one.*\[turn 4\] four/);
      await chat.send("five", /\[turn 5\] five/);
      chat.type(CTRL_D);
      expect(await chat.done).toBe(0);
    },
  );

  it.each([
    ["as a bracketed paste", [pasted("one\n\n\ttwo(3);\nthree"), "\r"]],
    ["at once without paste markers", ["one\r\r\ttwo(3);\rthree\r"]],
  ])("a chat turns several lines that arrive %s into one prompt, and keeps blank lines", async (how, pieces) => {
    const id = how.replaceAll(/\W+/g, "-");
    await fleet.create("alice", id);
    await using chat = await ChatTerminal.open(fleet, ["chat", id, "--user", "alice"]);
    for (const piece of pieces) chat.type(piece);
    await chat.waits(/> one\n\n {6}two\(3\);\n {2}three\n\n\[turn 1\] one/);
    await chat.send("next", /\[turn 2\] next/);
    chat.type(CTRL_D);
    expect(await chat.done).toBe(0);
    // The chat turns bracketed-paste mode on at its start and off at its end.
    const [on, off] = ["\x1b[?2004h", "\x1b[?2004l"].map((mode) => chat.raw.indexOf(mode));
    expect(on).toBeGreaterThanOrEqual(0);
    expect(off).toBeGreaterThan(on ?? 0);
    const history = await fleet.send("alice", id, "count");
    expect(history).toContain("[turn 3]");
  });

  it("Alt-Enter and a backslash before Enter begin a new line of the prompt", async () => {
    await using chat = await ChatTerminal.open(fleet, CHAT);
    let text = "";
    for (const keys of ["one", "\x1b\r", "two\\", "\r", "three"]) {
      chat.type(keys);
      text = keys === "\r" ? text.replace("\\", "\n  ") : `${text}${/^\w/.test(keys) ? keys : "\n  "}`;
      // Wait until the chat shows each key, because keys that arrive together count as pasted text.
      await chat.screenShows(new RegExp(`> ${text.trimEnd().replace("\\", "\\\\")}$`));
    }
    await chat.screenShows(/> one\n {2}two\n {2}three$/);
    chat.type("\r");
    await chat.waits(/\[turn 1\] one\ntwo\nthree/);
  });

  it("a chat shows the reply as rendered Markdown while it arrives", async () => {
    await using chat = await ChatTerminal.open(fleet, CHAT);
    chat.type(`!delay 120000 **bold** \`code\` ${"word ".repeat(100)}\r`);
    await chat.screenShows(/\[turn 1\] bold code word.* Waiting for the model \(\d+ s\)\. Ctrl-C cancels\./s);
    chat.type(CTRL_C);
    await chat.waits(/\[turn 1\] bold code word.*The turn was cancelled\./);
  });

  it("Ctrl-C during a turn cancels only that turn, and the chat continues in the same session", async () => {
    await fleet.create("alice", "cancelled");
    await using chat = await ChatTerminal.open(fleet, ["chat", "cancelled", "--user", "alice"]);
    chat.type("!delay 60000 never\r");
    await eventually("the turn", async () => await fleet.inTurn("alice", "cancelled"));
    await chat.screenShows(/Waiting for the model \(\d+ s\)\. Ctrl-C cancels\./);
    chat.type(CTRL_C);
    const cancelled = await chat.waits(/The turn was cancelled\./);
    expect(cancelled).not.toContain("Waiting for the model");
    await chat.send("still there", /\[turn \d\] still there/);
    expect(await fleet.inTurn("alice", "cancelled")).toBe(false);
  });

  it("Ctrl-C clears a half-typed prompt, and Ctrl-C twice at an empty prompt ends the chat", async () => {
    await using chat = await ChatTerminal.open(fleet, CHAT);
    chat.type("not this");
    await chat.screenShows(/> not this/);
    chat.type(CTRL_C);
    await chat.waits(/./);
    await chat.send("but this", /\[turn 1\] but this/);
    chat.type(CTRL_C);
    await chat.screenShows(/Ctrl-C again, or Ctrl-D, ends the chat\.$/);
    await chat.send("on", /\[turn 2\] on/);
    chat.type(CTRL_C);
    await chat.screenShows(/Ctrl-C again, or Ctrl-D, ends the chat\.$/);
    chat.type(CTRL_C);
    expect(await chat.done).toBe(0);
  });

  it("a prompt that is typed during a turn is shown, and is sent after the turn", async () => {
    await fleet.create("alice", "early");
    await using chat = await ChatTerminal.open(fleet, ["chat", "early", "--user", "alice"]);
    chat.type("!delay 3000 slow\r");
    await eventually("the turn", async () => await fleet.inTurn("alice", "early"));
    chat.type("early\r");
    await chat.screenShows(/cancels\.\n> early\n>$/);
    await chat.waits(/\[turn 1\].*slow.*\[turn 2\] early/);
  });

  it("SIGTERM during a turn ends the chat with exit code 143, and restores the terminal", async () => {
    await fleet.create("alice", "terminated");
    await using chat = await ChatTerminal.open(fleet, ["chat", "terminated", "--user", "alice"]);
    chat.type("!delay 60000 never\r");
    await eventually("the turn", async () => await fleet.inTurn("alice", "terminated"));
    process.kill(chat.commandPid, "SIGTERM");
    expect(await chat.done).toBe(143);
    expect(chat.raw.lastIndexOf("\x1b[?2004l")).toBeGreaterThan(chat.raw.lastIndexOf("\x1b[?2004h"));
    expect(chat.raw.lastIndexOf("\x1b[?25h")).toBeGreaterThan(chat.raw.lastIndexOf("\x1b[?25l"));
    expect(await fleet.inTurn("alice", "terminated")).toBe(false);
  });
});

describe("Ctrl-C while a chat works on something other than a turn", () => {
  it("Ctrl-C cancels a command that waits for a stopped server, and the chat goes on in the same session", async () => {
    await fleet.create("alice", "cancelled-command");
    await using chat = await ChatTerminal.open(fleet, ["chat", "cancelled-command", "--user", "alice"]);
    await chat.send("one", /\[turn 1\] one/);
    const server = await fleet.pidOf("alice");
    process.kill(server, "SIGSTOP");
    try {
      chat.type("/model\r");
      await chat.screenShows(/Asking for the models \(\d+ s\)\. Ctrl-C cancels\./);
      chat.type(CTRL_C);
      await chat.waits(/> \/model\nThe command was cancelled\./);
    } finally {
      process.kill(server, "SIGCONT");
    }
    await chat.send("two", /\[turn 2\] two/);
  });

  it("Ctrl-C while a chat opens its first session ends the chat with exit code 130, and leaves no session behind", async () => {
    const before = await sessionsOf("alice");
    const server = await fleet.pidOf("alice");
    process.kill(server, "SIGSTOP");
    try {
      await using chat = new ScreenTerminal(fleet, CHAT);
      await chat.screenShows(/Opening the session \(\d+ s\)\. Ctrl-C cancels\./);
      chat.type(CTRL_C);
      await chat.screenShows(/Interrupted: no session was created\./);
      expect(await chat.done).toBe(130);
    } finally {
      process.kill(server, "SIGCONT");
    }
    expect(await sessionsOf("alice")).toEqual(before);
  });
});

describe("a chat that is starting", () => {
  it("a chat sends a prompt that the user entered before the chat was ready for keys", async () => {
    await using chat = new ScreenTerminal(fleet, CHAT);
    chat.type("early\r");
    await chat.screenShows(/> early\n.*\[turn 1\] early/s);
    chat.type("exit\r");
    expect(await chat.done).toBe(0);
  });
});

describe("a chat whose terminal is stopped or gone", () => {
  const CTRL_Z = "\x1a";

  it("Ctrl-Z has no effect on a chat without a parent shell, because nothing could resume the chat", async () => {
    await using chat = await ChatTerminal.open(fleet, CHAT);
    chat.type(CTRL_Z);
    await chat.send("still here", /\[turn 1\] still here/);
  });

  it("after Ctrl-Z and fg, a chat shows its prompt exactly once, below the output of the shell", async () => {
    const script = `set -m; "$0" "$@"; echo the shell; read line; fg`;
    const args = ["-c", script, process.execPath, COMMAND, ...CHAT];
    await using chat = await ChatTerminal.open(fleet, args, { program: "bash" });
    chat.type(CTRL_Z);
    await chat.screenShows(/the shell/);
    chat.type("\r");
    // The first status line is from before Ctrl-Z, and the second from after fg. Wait for the second one, because until
    // it appears, the terminal turns the Enter key into a newline.
    await eventually("the prompt after fg", async () => (await chat.statusLines()) === 2);
    await chat.send("back again", /\[turn 1\] back again/);
    expect((await chat.rows()).join("\n")).toContain("the shell");
    expect(await chat.statusLines()).toBe(2);
  });

  it("a chat whose terminal is closed cancels its turn, drops the prompt that waits for the turn, and ends", async () => {
    await fleet.create("alice", "closed");
    const chat = await ChatTerminal.open(fleet, ["chat", "closed", "--user", "alice"]);
    chat.type("!delay 60000 never\r");
    await eventually("the turn", async () => await fleet.inTurn("alice", "closed"));
    chat.type("waiting\r");
    await chat.screenShows(/cancels\.\n> waiting\n>$/);
    const pid = chat.commandPid;
    await chat[Symbol.asyncDispose]();
    await eventually("the end of the chat", () => !isRunning(pid));
    expect(await fleet.inTurn("alice", "closed")).toBe(false);
    expect(await turnsOf("closed")).toBe(1);
  });

  it("a chat whose terminal is closed exits with 129, as after SIGHUP, and prints no error", async () => {
    const [errors, code] = ["errors", "code"].map((name) => join(fleet.folder, name));
    // The shell has its own handler of SIGHUP, so that it outlives its terminal.
    const script = `trap : HUP; "$0" "$@" 2>'${errors}'; echo $? >'${code}'`;
    const args = ["-c", script, process.execPath, COMMAND, ...CHAT];
    const chat = await ChatTerminal.open(fleet, args, { program: "bash" });
    await chat.send("hello", /\[turn 1\] hello/);
    await chat[Symbol.asyncDispose]();
    const ended = await eventually(
      "the end of the chat",
      () => existsSync(code ?? "") && readFileSync(code ?? "", "utf8"),
    );
    expect({ ended, errors: readFileSync(errors ?? "", "utf8") }).toEqual({ ended: "129\n", errors: "" });
  });

  it("a chat whose terminal is closed deletes its new session if the user sent no prompt", async () => {
    const before = await sessionsOf("alice");
    const chat = await ChatTerminal.open(fleet, CHAT);
    expect(await sessionsOf("alice")).toHaveLength(before.length + 1);
    await chat[Symbol.asyncDispose]();
    await eventually("the end of the session", async () => (await sessionsOf("alice")).length === before.length);
  });
});

describe("the commands of a chat", () => {
  it("/help lists the commands and keys, and fits the terminal", async () => {
    for (const columns of [60, 80, 140]) {
      await using chat = await ChatTerminal.open(fleet, CHAT, { columns, rows: 40 });
      await chat.send("/help", /ends the chat/);
      await expect(await chat.stableRows()).toMatchFileSnapshot(`../cli/screens/chat-help-${columns}.txt`);
    }
  });

  it("an unknown command is not sent to the model, and two slashes send a prompt that begins with one slash", async () => {
    await using chat = await ChatTerminal.open(fleet, CHAT);
    chat.type("/modle\r");
    await chat.screenShows(/There is no command \/modle\. Did you mean \/model\?.*write \/\/\.\s+>$/s);
    chat.type("\x1b[A");
    await chat.screenShows(/> \/modle$/);
    chat.type(CTRL_C);
    await chat.send("//modle", /\[turn 1\] \/modle/);
  });

  it("/new begins another session, and /resume with the beginning of an id goes back to the first session", async () => {
    await fleet.create("alice", "first-of-two");
    await fleet.send("alice", "first-of-two", "one");
    await using chat = await ChatTerminal.open(fleet, ["chat", "first-of-two", "--user", "alice"]);
    await chat.send("/new", /Continue this session: .*first-of-two.*\/help lists/);
    await chat.send("in the new one", /\[turn 1\] in the new one/);
    await chat.send("/resume", / {2}first-of-two {2}used \d+s ago/);
    await chat.send("/resume first-of", /> one\n\n\[turn 1\] one/);
    await chat.send("two", /\[turn 2\] two/);
    await chat.send("/resume no-such", /There is no session "no-such"/);
    await chat.send("three", /\[turn 3\] three/);
  });

  it("/model shows and changes the model, and the session keeps the new model after its server was killed", async () => {
    await fleet.create("alice", "model");
    await using chat = await ChatTerminal.open(fleet, ["chat", "model", "--user", "alice"], { columns: 140 });
    await chat.send("/model", /The model is gpt-5\./);
    await chat.send("/model gpt-6-mini", /The model is gpt-6-mini\./);
    await chat.send("one", /\[turn 1\] one/);
    process.kill(await fleet.pidOf("alice"), "SIGKILL");
    await chat.send("two", /\[turn 2\] two/);
    await chat.send(
      "/usage",
      /gpt-6-mini: 2 requests, \d+ input tokens \(0 of them from the cache\), \d+ output tokens/,
    );
  });

  it("a later chat shows the model that /model chose, and list --model finds the session", async () => {
    await fleet.create("alice", "kept-model");
    await using chat = await ChatTerminal.open(fleet, ["chat", "kept-model", "--user", "alice"], { columns: 140 });
    await chat.send("one", /\[turn 1\] one/);
    await chat.send("/model gpt-6-nano", /The model is gpt-6-nano\./);
    chat.type("/exit\r");
    expect(await chat.done).toBe(0);
    const { sessions } = await fleet.json<{ sessions: SessionView[] }>(["list", "--model", "gpt-6-nano"]);
    expect(sessions.map(({ id }) => id)).toContain("kept-model");
    await using later = await ChatTerminal.open(fleet, ["chat", "kept-model", "--user", "alice"], { columns: 140 });
    await later.send("/model", /The model is gpt-6-nano\./);
  });

  it("one blank row follows the output of /history, /new and /resume", async () => {
    await fleet.create("alice", "blank-rows");
    await using chat = await ChatTerminal.open(fleet, ["chat", "blank-rows", "--user", "alice"], { rows: 50 });
    await chat.send("one", /\[turn 1\] one/);
    for (const command of ["/history", "/new", "/resume blank-rows"]) await chat.send(command, /one|\/help lists/);
    expect((await chat.rows()).join("\n")).not.toContain("\n\n\n");
  });
});

describe("the status line of a chat", () => {
  it("the line above the prompt names the model, the server and the session, also after /model and /new", async () => {
    await fleet.create("alice", "status");
    const { id: server } = await fleet.server("alice");
    await using chat = await ChatTerminal.open(fleet, ["chat", "status", "--user", "alice"]);
    await chat.statusShows(new RegExp(`^model echo · server ${server} · session status$`));
    await chat.send("/model gpt-6-mini", /The model is gpt-6-mini\./);
    await chat.statusShows(new RegExp(`^model echo · server ${server} · session status$`));
    await chat.send("/new", /\/help lists/);
    await chat.statusShows(new RegExp(`^model echo · server ${server} · session [0-9a-f-]+…?$`));
    chat.type("/exit\r");
    expect(await chat.done).toBe(0);
    expect(await chat.statusLines()).toBe(0);
  });

  it("the status line is cut to one row of a narrow terminal", async () => {
    await using chat = await ChatTerminal.open(fleet, CHAT, { columns: 40 });
    await chat.statusShows(/^model echo · server alice-.*…$/);
    await chat.send("hello", /\[turn 1\] hello/);
    expect(await chat.statusLines()).toBe(1);
  });
});

describe("the history of prompts", () => {
  it("Up shows the user's prompts of other chats, even of running ones, but no prompts of other users", async () => {
    await using first = await ChatTerminal.open(fleet, ["chat", "--user", "hanna"]);
    await first.send("first chat", /\[turn 1\]/);
    await using second = await ChatTerminal.open(fleet, ["chat", "--user", "hanna"]);
    await second.send("second chat", /\[turn 1\]/);
    await first.send("first again", /\[turn 2\]/);
    await using third = await ChatTerminal.open(fleet, ["chat", "--user", "hanna"]);
    for (const prompt of ["first again", "second chat", "first chat"]) {
      third.type("\x1b[A");
      await third.screenShows(new RegExp(`> ${prompt}$`));
    }
    await using other = await ChatTerminal.open(fleet, ["chat", "--user", "ivan"]);
    other.type("\x1b[A");
    await other.waits(/./);
  });
});

describe("the screen of a chat", () => {
  it.each([60, 80, 140])(
    "on a terminal of %i columns, a chat breaks no word of any writing system, and places the cursor correctly",
    async (columns) => {
      await using chat = await ChatTerminal.open(fleet, CHAT, { columns, rows: 30 });
      await chat.send(pasted("你好世界 — مرحبا بالعالم — 😀 e\u0301"), /\[turn 1\] 你好世界/);
      await chat.send(
        pasted("List:\n\n- **one** two\n- `three` four\n\n> five\n\n| a | b |\n|---|---|\n| 1 | 二 |"),
        /1 +二/,
      );
      chat.type("你好ab");
      await chat.screenShows(/> 你好ab$/);
      chat.type("\x1b[D\x1b[D\x1b[D|");
      await chat.screenShows(/> 你\|好ab$/);
      expect((await chat.cursor()).before).toBe("> 你|");
      await expect(await chat.stableRows()).toMatchFileSnapshot(`../cli/screens/chat-${columns}.txt`);
    },
  );

  it("after a resize during a turn, the prompt and the progress line are each on the screen once", async () => {
    const id = randomUUID(); // a long id makes the status line as wide as the terminal
    await fleet.create("alice", id);
    await using chat = await ChatTerminal.open(fleet, ["chat", id, "--user", "alice"], { columns: 100 });
    chat.type("!delay 600000 never\r");
    await eventually("the turn", async () => await fleet.inTurn("alice", id));
    chat.type(`typed ${"word ".repeat(15)}`);
    await chat.screenShows(/> typed/);
    for (const columns of [60, 120, 45]) {
      chat.resize(columns, 24);
      const words = columns === 120 ? 15 : Math.floor(columns / 10);
      const input = new RegExp(`Waiting for the model \\([^\\n]*\\n> typed( word){${words}}`);
      // Until the chat draws again, the screen shows the rows as the terminal wrapped them. A row that the chat then
      // fails to erase would stay on the screen.
      await chat.screenShowsOnce(input, [/> !delay 600000 never/g, /Waiting for the model/g, /> typed/g]);
    }
  });

  it("with NO_COLOR, a chat shows no colours, and shows the marks of Markdown (such as **) instead", async () => {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: colours are control sequences
    const COLOUR = /\x1b\[[\d;]*m/;
    await using plain = await ChatTerminal.open(fleet, CHAT, { env: { NO_COLOR: "1" } });
    await plain.send("a **b** `c`", /\[turn 1\] a \*\*b\*\* `c`/);
    expect(plain.raw).not.toMatch(COLOUR);
    await using coloured = await ChatTerminal.open(fleet, CHAT);
    await coloured.send("a **b** `c`", /\[turn 1\] a b c/);
    expect(coloured.raw).toMatch(COLOUR);
  });
});

describe("a chat whose session cannot run the turn", () => {
  it("a chat reports that its server died in a turn, and runs the next prompt on a new server", async () => {
    await fleet.create("alice", "killed");
    await using chat = await ChatTerminal.open(fleet, ["chat", "killed", "--user", "alice"]);
    await chat.send("one", /\[turn 1\] one/);
    chat.type("!delay 8000 a b c d e f g h\r");
    await chat.screenShows(/\[turn 2\]/);
    process.kill(await fleet.pidOf("alice"), "SIGKILL");
    await chat.waits(/\[turn 2\][^\n]*\nThe server ended while session killed was in a turn\..*Send the prompt again/);
    await chat.send("three", /\[turn 3\] three/);
    chat.type(CTRL_D);
    expect(await chat.done).toBe(0);
    expect(await turnsOf("killed")).toBe(3);
  });

  it("a chat goes on after its server was stopped or restarted between two turns", async () => {
    await fleet.create("alice", "stopped");
    await using chat = await ChatTerminal.open(fleet, ["chat", "stopped", "--user", "alice"]);
    await chat.send("one", /\[turn 1\] one/);
    await fleet.ok(["stop", "--user", "alice"]);
    await chat.send("two", /\[turn 2\] two/);
    await fleet.ok(["restart", "--user", "alice"]);
    await chat.send("three", /\[turn 3\] three/);
    expect(await turnsOf("stopped")).toBe(3);
  });

  it("a chat shows why a turn cannot begin in a locked session, and puts the prompt back into the input", async () => {
    await fleet.create("alice", "locked");
    const { lease } = await fleet.json<{ lease: { token: string } }>(["lock", "locked", "--user", "alice"]);
    await using chat = await ChatTerminal.open(fleet, ["chat", "locked", "--user", "alice"]);
    chat.type("hello\r");
    await chat.screenShows(/Session "locked" is locked by "alice".*Try: copilotfleet unlock locked.*\n\n> hello$/s);
    await fleet.ok(["unlock", "locked", "--token", lease.token]);
    chat.type("\r");
    await chat.waits(/\[turn 1\] hello/);
  });

  it("when a turn fails, a chat shows the reason and accepts the next prompt", async () => {
    await using chat = await ChatTerminal.open(fleet, CHAT);
    await chat.send("!fail on purpose", /The turn failed: .*on purpose/);
    await chat.send("go on", /\[turn \d\] go on/);
  });
});

describe("a chat without a terminal", () => {
  it("chat is refused in a pipe (with a hint to use send), on a terminal without a cursor, and with --json", async () => {
    const piped = await fleet.refusal(2, CHAT);
    expect(piped.message).toBe("A chat has no JSON output.");
    const { code, stderr, stdout } = await fleet.run(["chat", "notes", "--user", "alice"]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toContain("A chat needs a terminal.");
    expect(stderr).toContain("Try: copilotfleet send notes TEXT --user alice");
    const dumb = new Terminal(fleet, CHAT, { env: { TERM: "dumb" } });
    expect(await dumb.done).toBe(2);
    expect(dumb.text).toContain("A chat needs a terminal.");
  });

  it("chat needs a user or a front door, and exits with 4 for a session that does not exist", async () => {
    expect((await fleet.run(["chat"])).stderr).toContain("Give either --user USER or --to HOST:PORT.");
    const chat = new Terminal(fleet, ["chat", "no-such-session", "--user", "alice"]);
    expect(await chat.done).toBe(4);
    expect(chat.text).toContain('There is no session "no-such-session"');
  });
});

describe("send on a terminal", () => {
  const EVIL = "a \x1b]0;title\x07 \x1b[2J \x9b31m b\u202ec";

  it("send escapes control characters of a reply on a terminal, and prints the reply unchanged to a pipe", async () => {
    await fleet.create("alice", "evil");
    const send = ["send", "evil", EVIL, "--user", "alice"];
    await using terminal = new Terminal(fleet, send, { columns: 200 });
    expect(await terminal.done).toBe(0);
    expect(terminal.text).toContain("[turn 1] a \\u{1b}]0;title\\u{7} \\u{1b}[2J \\u{9b}31m b\\u{202e}c\n");
    for (const sequence of ["\x1b]0", "\x1b[2J", "\x9b", "\u202e"]) expect(terminal.raw).not.toContain(sequence);
    expect(await fleet.ok(send)).toBe(`[turn 2] ${EVIL}\n`);
    expect(await fleet.json(send)).toMatchObject({ reply: `[turn 3] ${EVIL}` });
  });

  it("send prints lines, tabs, emoji and accents unchanged, even if a reply is split inside a character", async () => {
    await fleet.create("alice", "kind");
    const text = "one\r\n\ttwo 👩‍💻 e\u0301 می\u200cخواهم";
    await using terminal = new Terminal(fleet, ["send", "kind", text, "--user", "alice"], { columns: 200 });
    expect(await terminal.done).toBe(0);
    expect(terminal.text).toContain(`[turn 1] ${text.replace("\r", "")}\n`);
  });
});

describe("an error after half a reply", () => {
  it("if the server ends after half a reply, send prints the error on a new line", async () => {
    await fleet.create("alice", "half");
    await using terminal = new Terminal(fleet, ["send", "half", "!delay 8000 a b c d e f g h", "--user", "alice"]);
    await terminal.shows(/\[turn 1\]/);
    process.kill(await fleet.pidOf("alice"), "SIGKILL");
    await terminal.shows(/\[turn 1\][^\n]*\nError: The server ended/);
    await terminal.done;
  });

  it("Ctrl-C during a send leaves the cursor at the beginning of a line, and exits with 130", async () => {
    await fleet.create("alice", "interrupted");
    await using terminal = new Terminal(fleet, ["send", "interrupted", "!delay 60000 x", "--user", "alice"]);
    await eventually("the turn", async () => await fleet.inTurn("alice", "interrupted"));
    terminal.type(CTRL_C);
    expect(await terminal.done).toBe(130);
    // Ignore the terminal's echo of Ctrl-C. Only the progress line erases it, and that line appears after a second.
    expect(terminal.screen.lines.join("\n").replace(/^\^C\n/, "")).toBe(
      'Interrupted: the turn was cancelled. The session "interrupted" still exists.',
    );
    expect(terminal.screen).toMatchObject({ column: 0, isCursorVisible: true });
  });
});
