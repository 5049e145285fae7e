import { describe, expect, it } from "vitest";
import { answerCall, type Calls, readAnswer } from "../../src/hosts/calls/rpc-table.js";

const never = new AbortController().signal;

describe("calls from other hosts", () => {
  it.each([
    ["server", {}, '"id" in a call from another host is missing.'],
    ["server", { id: "" }, '"id" in a call from another host is not a text.'],
    ["server", { id: "a\0b" }, '"id" in a call from another host is not a text.'],
    ["stop", { ids: ["a-1", 5], request: {} }, '"ids" in a call from another host is not a list of texts.'],
    ["stop", { ids: ["a-1"], request: [] }, '"request" in a call from another host is not an object.'],
    ["stop", { ids: ["a-1"], request: { force: "yes" } }, '"force" in a call from another host is not true or false.'],
    [
      "logEnd",
      { id: "a-1", lines: 1.5 },
      '"lines" in a call from another host is not a whole number from 0 to 1000000.',
    ],
    ...[
      { from: "env", name: "HOME" },
      { from: "file", path: "/t" },
      { from: "command", command: "id" },
    ].map((token): [string, object, string] => [
      "spawn",
      { user: "alice", request: { token } },
      '"token" in a call from another host is not allowed, because only this host names its token sources.',
    ]),
  ])("answerCall refuses a call of the method %s with the parameters %j", async (method, params, message) => {
    const asked: unknown[] = [];
    const own = new Proxy({}, { get: () => (given: unknown) => asked.push(given) }) as Calls;
    await expect(answerCall(own, method, params, never)).rejects.toMatchObject({
      code: "FLEET_USAGE_INVALID",
      message,
      suggestions: ["Use the same version of copilotfleet on all hosts."],
    });
    expect(asked).toEqual([]);
  });
});

describe("answers of other hosts", () => {
  it.each([
    ["servers", null, "it is not a list"],
    ["servers", [{ id: 5 }], '"id" is not a text'],
    ["sessionOf", {}, '"id" is missing'],
    ["moreLog", { bytes: "", at: { offset: -1 } }, '"offset" is not a whole number from 0 to 9007199254740991'],
  ] as const)("readAnswer refuses, for the call %s, the answer %j", (method, answer, why) => {
    expect(() => readAnswer(method, answer, "h1")).toThrow(
      expect.objectContaining({
        code: "FLEET_PROTOCOL_UNSUPPORTED",
        message: `Host h1 gave an answer to "${method}" that this version cannot read: ${why}.`,
      }),
    );
  });
});
