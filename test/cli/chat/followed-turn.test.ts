import type { SessionEvent } from "@github/copilot-sdk";
import { describe, expect, it } from "vitest";
import { FollowedTurn } from "../../../src/cli/chat/door.js";

let number = 0;
const event = (type: string, data: object) =>
  ({ id: `e${++number}`, type, data, ephemeral: false }) as unknown as SessionEvent;
const asked = (content: string) => event("user.message", { content });
const answered = (content: string) => event("assistant.message", { messageId: content, content, toolRequests: [] });
const called = (content: string) => event("assistant.message", { messageId: content, content, toolRequests: [{}] });

describe("FollowedTurn after a reconnection", () => {
  it("FollowedTurn reports each missed event once, in the order of the history", () => {
    const seen: SessionEvent[] = [];
    const [prompt, call, answer] = [asked("go"), called("step"), answered("done")];
    const before = [asked("go"), answered("earlier")];
    const turn = new FollowedTurn("go", before[1]?.id, (each) => seen.push(each));
    turn.push(prompt);
    turn.push(call);
    turn.catchUp([...before, prompt, call, answer]);
    expect(seen).toEqual([prompt, call, answer]);
    expect(turn.lastId).toBe(answer.id);
  });

  it("FollowedTurn finds its prompt by the text if it saw no event, and ignores an earlier equal prompt", () => {
    const seen: SessionEvent[] = [];
    const before = [asked("go"), answered("earlier")];
    const later = [asked("go"), answered("later")];
    new FollowedTurn("go", before[1]?.id, (each) => seen.push(each)).catchUp([...before, ...later]);
    expect(seen).toEqual(later);
  });

  it("FollowedTurn does not report another client's turn that follows its own turn", () => {
    const seen: SessionEvent[] = [];
    const prompt = asked("mine");
    const turn = new FollowedTurn("mine", undefined, (each) => seen.push(each));
    turn.push(prompt);
    const history = [prompt, asked("theirs"), answered("for them")];
    expect(() => turn.catchUp(history)).toThrow("the turn ended without an answer");
    expect(seen).toEqual([prompt]);
  });

  it("FollowedTurn reports the answer that follows a skill's text and the messages of a sub-agent", () => {
    const seen: SessionEvent[] = [];
    const ofAgent = (each: SessionEvent) => ({ ...each, agentId: "agent" }) as SessionEvent;
    const history = [
      event("user.message", { content: "go", interactionId: "i1" }),
      event("assistant.turn_start", { interactionId: "i1" }),
      event("assistant.message", { messageId: "m1", content: "", toolRequests: [{ toolCallId: "c1" }] }),
      ofAgent(asked("a task")),
      ofAgent(answered("its result")),
      event("tool.execution_complete", { toolCallId: "c1" }),
      event("assistant.turn_end", {}),
      event("user.message", { content: "the skill", source: "skill-x", interactionId: "i1" }),
      event("assistant.turn_start", { interactionId: "i1" }),
      answered("done"),
      event("assistant.turn_end", {}),
    ];
    new FollowedTurn("go", undefined, (each) => seen.push(each)).catchUp([
      ...history,
      asked("next"),
      answered("other"),
    ]);
    expect(seen).toEqual(history);
  });

  it("FollowedTurn does not accept a sub-agent's message as the answer, and throws the error of a failed turn", () => {
    const start = [asked("go"), event("assistant.turn_start", {})];
    const agent = { ...answered("its result"), agentId: "agent" } as SessionEvent;
    const turn = () => new FollowedTurn("go", undefined, () => undefined);
    expect(() => turn().catchUp([...start, agent])).toThrow("the turn ended without an answer");
    const failed = event("session.error", { message: "quota" });
    const history = [...start, agent, event("assistant.turn_end", {}), failed];
    expect(() => turn().catchUp(history)).toThrow("The turn failed: quota");
  });

  it("FollowedTurn throws if its prompt never arrived, even if an earlier turn had the same prompt", () => {
    const before = [asked("go"), answered("earlier")];
    const turn = new FollowedTurn("go", before[1]?.id, () => undefined);
    expect(() => turn.catchUp(before)).toThrow("The history does not contain the prompt.");
  });
});
