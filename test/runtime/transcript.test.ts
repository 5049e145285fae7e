import { describe, expect, it } from "vitest";
import { Transcriber, type TranscriptEntry } from "../../src/runtime/history/transcript.js";
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
  toolStep,
} from "../fixtures/sessions/history.js";

const LATER_MS = 60_000;

function read(text: string | Buffer, { chunkBytes = 1_000, user = null as string | null, isLoaded = true } = {}) {
  const bytes = Buffer.from(text);
  const transcriber = new Transcriber(user);
  const entries: TranscriptEntry[] = [];
  for (let from = 0; from < bytes.length; from += chunkBytes) {
    entries.push(...transcriber.push(bytes.subarray(from, from + chunkBytes)));
  }
  entries.push(...transcriber.end(at() + LATER_MS, isLoaded));
  return { entries, damage: transcriber.damage };
}

/** The transcript of this history. Each entry is one text: its turn, its role, and its text or failure. */
function told(text: string, options: { isLoaded?: boolean } = {}): string[] {
  return read(text, options).entries.map(({ role, text, turn, failure }) => {
    return `${turn} ${role} ${failure === null ? text : `[${failure}]`}`;
  });
}

const toolStart = (toolCallId: string, toolName: string, given: unknown) =>
  line("tool.execution_start", { toolCallId, toolName, arguments: given });
const toolEnd = (toolCallId: string, over: Record<string, unknown>) =>
  line("tool.execution_complete", { toolCallId, ...over });

describe("the turns of a transcript", () => {
  it("the same history gives the same transcript, however it is cut into pieces", () => {
    const text =
      started() + prompt({ content: "ä€🙂" }) + toolStep("t1") + finalStep("ü") + prompt() + failed() + prompt();
    const whole = read(text, { chunkBytes: text.length * 4 });
    for (const chunkBytes of [1, 2, 7, 100]) expect(read(text, { chunkBytes })).toEqual(whole);
  });

  it("a transcript numbers its turns, and a prompt that steers a turn belongs to that turn", () => {
    const text =
      started() + prompt({ content: "a" }) + stepStart() + prompt({ content: "b", delivery: "steering" }) + answer("c");
    expect(told(text + stepEnd() + prompt({ content: "d", delivery: "queued" }) + finalStep("e"))).toEqual([
      "1 user a",
      "1 user b",
      "1 assistant c",
      "2 user d",
      "2 assistant e",
    ]);
  });

  it("a transcript leaves out the messages of sub-agents, skills and autopilot", () => {
    const ofAgent = line("user.message", { content: "x" }, "a1") + line("assistant.message", { content: "x" }, "a1");
    const ofRuntime = prompt({ content: "x", source: "skill-pdf", delivery: "steering" });
    const ofAutopilot = prompt({ content: "x", isAutopilotContinuation: true, delivery: "steering" });
    const text = started() + prompt({ content: "a" }) + stepStart() + ofAgent + ofRuntime + ofAutopilot + answer("b");
    expect(told(text + stepEnd())).toEqual(["1 user a", "1 assistant b"]);
  });
});

describe("the end of a turn in a transcript", () => {
  it.each([
    ["a turn that failed has the model's error", failed(), "500"],
    ["a turn that was cancelled shows that", aborted(), "The turn was cancelled."],
    ["a turn that was cut shows that", shutdown(), "The server ended, or unloaded the session, during the turn."],
    [
      "a turn that was cut by SIGKILL shows that once the session is loaded again",
      resumed(),
      "The server ended, or unloaded the session, during the turn.",
    ],
  ])("%s", (_, end, failure) => {
    const next = prompt({ content: "c" }) + finalStep("d");
    expect(told(started() + prompt({ content: "a" }) + end + next)).toEqual([
      "1 user a",
      `1 assistant [${failure}]`,
      "2 user c",
      "2 assistant d",
    ]);
  });

  it("Transcriber.end reports a turn without an end as still running, or as cut if no server has the session loaded", () => {
    const text = started() + prompt({ content: "a" }) + stepStart() + answer("", "t1") + toolStart("t1", "bash", {});
    expect(told(text)).toEqual([
      "1 user a",
      "1 tool bash (unfinished)",
      "1 assistant [The history has no end of this turn: it still runs, or its server ended.]",
    ]);
    const cut = "1 assistant [The server ended, or unloaded the session, during the turn.]";
    expect(told(text, { isLoaded: false }).at(-1), "not loaded").toBe(cut);
  });
});

describe("a tool call in a transcript", () => {
  const outcome = (given: unknown, result: Record<string, unknown>) => {
    const step = stepStart() + answer("", "t") + toolStart("t", "bash", given) + toolEnd("t", result) + stepEnd();
    const found = read(started() + prompt() + step).entries.find(({ role }) => role === "tool");
    return [found?.text, found?.tool];
  };

  it.each([
    ["completed", { command: "ls -l\n", description: "x" }, { success: true }, "bash: ls -l (completed)", "completed"],
    ["completed without an argument", {}, { success: true }, "bash (completed)", "completed"],
    ["completed with a text as argument", "ls", { success: true }, "bash: ls (completed)", "completed"],
    [
      "completed with an exit code",
      { command: "false" },
      { success: true, shellExecution: { exitCode: 3 } },
      "bash: false (exit code 3)",
      "completed",
    ],
    [
      "failed",
      { path: "/x" },
      { success: false, error: { message: "No such\nfile" } },
      "bash: /x (failed: No such file)",
      "failed",
    ],
    [
      "was refused",
      { path: "/x" },
      { success: false, error: { message: "no", code: "denied" } },
      "bash: /x (refused: no)",
      "refused",
    ],
    ["has a result of another shape", { n: 1 }, { error: 5 }, "bash (unfinished)", "unfinished"],
  ])("a tool call that %s is one line", (_, given, result, text, expected) => {
    expect(outcome(given, result)).toEqual([text, { name: "bash", outcome: expected }]);
  });

  it("a tool call in a transcript shows only the beginning of a long argument", () => {
    const [text] = outcome({ command: `${"🙂".repeat(500)}` }, { success: true });
    expect(text).toBe(`bash: ${"🙂".repeat(199)}… (completed)`);
  });
});

describe("a damaged history", () => {
  it("a transcript treats a field of an unexpected type as missing", () => {
    const odd = [
      line("user.message", { content: 5, attachments: { a: 1 } }),
      line("assistant.message", { content: ["x"], toolRequests: "x" }),
      line("tool.execution_start", { toolCallId: "t", toolName: 5, arguments: null }),
      line("tool.execution_complete", { toolCallId: "t", success: "yes" }),
      line("tool.execution_complete", { toolCallId: 5 }),
      line("session.error", { message: {} }),
    ];
    expect(told(started() + odd.join(""))).toEqual([
      "1 user ",
      "1 tool tool (unfinished)",
      "1 assistant [The turn failed.]",
    ]);
  });

  it("a transcript contains a reply of 5 MB, and leaves out the text of a reply that is longer than 16 MB", () => {
    const long = "x".repeat(5 * 1024 * 1024);
    const longer = "y".repeat(17 * 1024 * 1024);
    const text = started() + prompt({ content: "a" }) + finalStep(long) + prompt({ content: "b" }) + finalStep(longer);
    const { entries, damage } = read(text, { chunkBytes: 1024 * 1024 });
    expect(damage).toBeNull();
    expect(entries.map((entry) => entry.text)).toEqual(["a", long, "b", "(longer than 16 MB, and left out)"]);
  });
});
