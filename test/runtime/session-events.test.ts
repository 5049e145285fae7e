import { spawnSync } from "node:child_process";
import {
  appendFileSync,
  closeSync,
  fstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { beforeEach, describe, expect, it, onTestFinished } from "vitest";
import {
  type HistoryEvent,
  LineSplitter,
  MOST_HISTORY_BYTES,
  readEvent,
  readPart,
} from "../../src/runtime/history/line.js";
import { endsInsideTurn, openHistory, promptsSince } from "../../src/runtime/history/session-events.js";
import { historyPath } from "../../src/runtime/history/session-state.js";
import { type EndedTurn, TurnTracker } from "../../src/runtime/history/turn-tracker.js";
import {
  aborted,
  answer,
  at,
  failed,
  finalStep,
  line,
  prompt,
  resumed,
  shutdown,
  started,
  stepEnd,
  stepStart,
  tool,
  toolStep,
} from "../fixtures/sessions/history.js";

const MEGABYTE = 1024 * 1024;
const ENOUGH = 64 * MEGABYTE;

let home: string;
let path: string;
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), "copilotfleet-history-"));
  onTestFinished(() => rmSync(home, { recursive: true, force: true }));
  path = historyPath(home, "s");
  mkdirSync(dirname(path), { recursive: true });
});

function eventsOf(text: string | Buffer): HistoryEvent[] {
  return [...new LineSplitter().push(Buffer.from(text))].flatMap((one) => readEvent(one) ?? []);
}

function turnsOf(text: string): { ended: EndedTurn[]; tracker: TurnTracker } {
  const tracker = new TurnTracker();
  return { ended: eventsOf(text).flatMap((event) => tracker.push(event) ?? []), tracker };
}

/** The outcomes of the turns in a history, followed by the state of the last turn if it has not ended. */
function story(text: string): string[] {
  const { ended, tracker } = turnsOf(text);
  const rest = tracker.open === null ? [] : [tracker.isDoubtful ? "doubtful" : "open"];
  return [...ended.map(({ outcome }) => outcome), ...rest];
}

describe("turns in a history", () => {
  it.each<[string, () => string, string[]]>([
    ["with one answer", () => prompt() + finalStep(), ["completed"]],
    ["before its first step", () => prompt(), ["open"]],
    ["in its first step", () => prompt() + stepStart(), ["open"]],
    ["between two steps", () => prompt() + toolStep("a"), ["open"]],
    ["with several steps", () => prompt() + toolStep("a") + toolStep("b") + finalStep(), ["completed"]],
    [
      "with a tool that failed",
      () => prompt() + toolStep("a", { success: false, error: { code: "failure" } }) + finalStep(),
      ["completed"],
    ],
    [
      "that told the model why a tool was refused",
      () => prompt() + toolStep("a", { success: false, error: { code: "rejected" } }) + finalStep(),
      ["completed"],
    ],
    [
      "that ended with a refused tool",
      () => prompt() + toolStep("a", { success: false, error: { code: "rejected" } }),
      ["doubtful"],
    ],
    [
      "with a text next to the tool call",
      () => prompt() + stepStart() + answer("let me see", "a") + tool("a") + stepEnd(),
      ["open"],
    ],
    ["that failed", () => prompt() + stepStart() + stepEnd() + failed(), ["failed"]],
    ["whose failure is not in the history yet", () => prompt() + stepStart() + stepEnd(), ["doubtful"]],
    ["with an empty answer", () => prompt() + finalStep("") + failed(), ["failed"]],
    ["that failed before its first step", () => prompt() + failed(), ["failed"]],
    ["that failed in its second step", () => prompt() + toolStep("a") + stepStart() + stepEnd() + failed(), ["failed"]],
    ["that was aborted before the step's end", () => prompt() + stepStart() + aborted() + stepEnd(), ["aborted"]],
    [
      "that was aborted during a tool, with the abort after the step's end",
      () => prompt() + stepStart() + answer("", "a") + stepEnd() + aborted(),
      ["aborted"],
    ],
    ["that was aborted after its end", () => prompt() + finalStep() + aborted(), ["completed"]],
    ["that was cut by the session's shutdown", () => prompt() + stepStart() + shutdown(), ["cut"]],
    ["that was cut between two steps", () => prompt() + toolStep("a") + shutdown(), ["cut"]],
    [
      "whose last step had no answer before a shutdown",
      () => prompt() + stepStart() + stepEnd() + shutdown(),
      ["failed"],
    ],
    [
      "that was cut by a kill and followed by another",
      () => prompt() + stepStart() + resumed() + prompt() + finalStep(),
      ["cut", "completed"],
    ],
    [
      "that another client joined",
      () => prompt() + stepStart() + resumed({ sessionWasActive: true }) + answer() + stepEnd(),
      ["completed"],
    ],
    [
      "that was followed by a queued one",
      () => prompt() + finalStep() + prompt({ delivery: "queued" }) + finalStep(),
      ["completed", "completed"],
    ],
    [
      "that was steered",
      () => prompt() + toolStep("a") + stepStart() + prompt({ delivery: "steering" }) + answer() + stepEnd(),
      ["completed"],
    ],
    [
      "into which the runtime inserted a text",
      () => prompt() + stepStart() + line("user.message", { content: "x", source: "skill-pdf" }) + answer() + stepEnd(),
      ["completed"],
    ],
    ["without a prompt", () => line("system.notification") + finalStep(), ["completed"]],
    ["that never began", () => started() + failed() + aborted() + shutdown() + resumed(), []],
    [
      "with a sub-agent",
      () =>
        prompt() +
        stepStart() +
        answer("", "a") +
        line("subagent.started", { toolCallId: "a" }, "agent") +
        line("user.message", { delivery: "idle" }, "agent") +
        line("assistant.turn_start", {}, "agent") +
        line("assistant.turn_end", {}, "agent"),
      ["open"],
    ],
  ])("the outcome of a turn %s is read correctly from the history", (_, text, expected) => {
    expect(story(text())).toEqual(expected);
  });

  it("a turn counts as over when its history does not show whether it ended, and two seconds pass without an event", () => {
    const { tracker } = turnsOf(prompt() + toolStep("a", { error: { code: "rejected" } }));
    expect(tracker.endIfQuiet(at() + 1_999)).toBeNull();
    expect(tracker.endIfQuiet(at() + 2_000)).toMatchObject({ outcome: "aborted", endedAtMs: at() });
    expect(tracker.open).toBeNull();
    const running = turnsOf(prompt() + toolStep("a")).tracker;
    expect(running.endIfQuiet(at() + 3_600_000)).toBeNull();
  });
});

describe("SessionEvents", () => {
  it("SessionEvents reports a truncated, rewritten, replaced or deleted history, and reads a history created after a deletion", () => {
    const text = prompt() + finalStep();
    const open = () => {
      writeFileSync(path, text);
      return openHistory(home, "s", ENOUGH).events;
    };
    const cut = open();
    truncateSync(path, 10);
    expect(cut.read(ENOUGH).fate).toBe("replaced");
    const anew = open();
    writeFileSync(path, prompt() + finalStep() + prompt());
    expect(anew.read(ENOUGH).fate).toBe("replaced");
    const same = open();
    // Write other ids of the same length, so that the size of the file does not show that it was rewritten.
    writeFileSync(
      path,
      text.replace(/[0-9a-f]/g, (digit) => (digit === "0" ? "1" : "0")),
    );
    utimesSync(path, new Date(), new Date(0));
    expect(same.read(ENOUGH).fate).toBe("replaced");
    const other = open();
    writeFileSync(`${path}.new`, text);
    renameSync(`${path}.new`, path);
    expect(other.read(ENOUGH).fate).toBe("replaced");
    const gone = open();
    rmSync(path);
    expect(gone.read(ENOUGH)).toEqual({ events: [], bytes: 0, atEnd: true, fate: "gone" });
    writeFileSync(path, prompt());
    expect(gone.read(ENOUGH)).toMatchObject({ fate: "there", events: [{ type: "user.message" }] });
  });

  it("openHistory throws for a link or a pipe, instead of following the link or waiting for a writer", () => {
    writeFileSync(join(home, "elsewhere"), prompt());
    symlinkSync(join(home, "elsewhere"), path);
    expect(() => openHistory(home, "s", ENOUGH)).toThrow(/ELOOP/);
    rmSync(path);
    expect(spawnSync("mkfifo", [path]).status).toBe(0);
    expect(() => openHistory(home, "s", ENOUGH)).toThrow(/not a file/);
  });
});

it("the end of a history that is too long to be read from its beginning can be read", async () => {
  const position = { offset: MOST_HISTORY_BYTES + 1, mark: "" };
  writeFileSync(path, "");
  truncateSync(path, position.offset);
  appendFileSync(path, prompt());
  const fd = openSync(path, "r");
  onTestFinished(() => closeSync(fd));
  const { ino } = fstatSync(fd);
  expect(await promptsSince(home, "s", position.offset)).toMatchObject([{ content: "hi" }]);
  expect(eventsOf(readPart(fd, "s", { ino, ...position }, MEGABYTE).bytes)).toMatchObject([{ type: "user.message" }]);
  await expect(promptsSince(home, "s", 0)).rejects.toThrow("The fleet reads at most");
  expect(() => readPart(fd, "s", null, MEGABYTE)).toThrow("The fleet reads at most");
});

describe("endsInsideTurn", () => {
  it.each<[string, () => string, boolean]>([
    ["a turn without an end", () => prompt() + stepStart(), true],
    ["a pause between two steps", () => prompt() + toolStep("a"), true],
    ["a turn that was shut down", () => prompt() + stepStart() + shutdown(), true],
    [
      "a turn that was shut down, in a session that was loaded again",
      () => prompt() + stepStart() + shutdown() + resumed(),
      false,
    ],
    ["a completed turn", () => prompt() + finalStep(), false],
    ["a completed turn and a shutdown", () => prompt() + finalStep() + shutdown(), false],
    ["a failed turn", () => prompt() + stepStart() + stepEnd() + failed(), false],
    ["a failed turn without its error", () => prompt() + stepStart() + stepEnd(), false],
    ["an aborted turn", () => prompt() + stepStart() + answer("", "a") + stepEnd() + aborted(), false],
    ["a half-written end of a turn", () => prompt() + stepStart() + answer() + stepEnd().slice(0, -20), true],
    ["no event", () => "", false],
    [
      "a turn of five megabytes",
      () => prompt() + toolStep("a", { result: "x".repeat(5 * MEGABYTE) }) + stepStart() + answer("", "b") + tool("b"),
      true,
    ],
    [
      "a turn of five megabytes that was shut down",
      () => prompt() + toolStep("a", { result: "x".repeat(5 * MEGABYTE) }) + stepStart() + shutdown(),
      true,
    ],
  ])("endsInsideTurn returns the right answer for a history that ends with %s", (_, text, expected) => {
    writeFileSync(path, text());
    expect(endsInsideTurn(home, "s")).toBe(expected);
  });

  it("endsInsideTurn returns false for a turn that began before the server started, and without a history", () => {
    writeFileSync(path, prompt());
    const startedAtMs = at();
    appendFileSync(path, stepStart());
    expect(endsInsideTurn(home, "s", startedAtMs)).toBe(true);
    expect(endsInsideTurn(home, "s", startedAtMs + 1)).toBe(false);
    expect(endsInsideTurn(home, "none")).toBe(false);
  });
});
