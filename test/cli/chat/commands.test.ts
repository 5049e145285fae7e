import { describe, expect, it } from "vitest";
import { parseEntered } from "../../../src/cli/chat/chat.js";

describe("the text that a user enters in a chat", () => {
  it.each([
    ["hello /help", { kind: "prompt", text: "hello /help" }],
    ["/help", { kind: "command", name: "help", argument: "" }],
    ["  /model  gpt-5 ", { kind: "command", name: "model", argument: "gpt-5" }],
    ["/quit", { kind: "command", name: "exit", argument: "" }],
    ["exit", { kind: "command", name: "exit", argument: "" }],
    ["exit the loop", { kind: "prompt", text: "exit the loop" }],
    ["/modle", { kind: "unknown", message: expect.stringContaining("no command /modle. Did you mean /model?") }],
    ["/usr/bin/env", { kind: "unknown", message: expect.stringContaining("no command /usr/bin/env. /help") }],
    ["//help", { kind: "prompt", text: "/help" }],
    ["/* a comment */\nint x;", { kind: "prompt", text: "/* a comment */\nint x;" }],
  ])("parseEntered reads %j as %j", (text, entered) => {
    expect(parseEntered(text)).toEqual(entered);
  });
});
