import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { readClientFrame } from "../../src/door/wire/client-message.js";
import { ProtocolError } from "../../src/runtime/wire/frames.js";
import { readServerFrame, scanObject, scanWithin } from "../../src/runtime/wire/scan.js";

describe("the JSON scanner", () => {
  it("finds the same members in every JSON object as JSON.parse does", () => {
    fc.assert(
      fc.property(fc.dictionary(fc.string({ unit: "grapheme" }), fc.jsonValue()), fc.nat(4), (value, indent) => {
        const text = Buffer.from(JSON.stringify(value, null, indent));
        const members = scanObject(text) ?? [];
        const found = members.map(({ key, start, end }) => [
          JSON.parse(`"${key}"`),
          JSON.parse(text.toString("utf8", start, end)),
        ]);
        expect(found).toEqual(Object.entries(JSON.parse(text.toString()) as object));
      }),
    );
  });

  it("reports JSON that is nested deeper than the limit", () => {
    const nested = (depth: number) => Buffer.from(`{"a":${"[".repeat(depth - 1)}${"]".repeat(depth - 1)}}`);
    const over = (levels: number) => scanWithin(nested(levels), { depth: 10, values: 1_000 })?.over;
    expect([10, 11, 1_000_000].map(over)).toEqual([null, "depth", "depth"]);
  });

  it("stops scanning at the end of any text, even if the text is not JSON", () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom(...'{}[]",:\\ 1ae\n') }), (text) => {
        scanObject(Buffer.from(text));
      }),
      { numRuns: 2_000 },
    );
  });
});

describe("readClientFrame", () => {
  const read = (text: string | Buffer) => readClientFrame(Buffer.from(text));
  const nested = (levels: number) => "[".repeat(levels) + "]".repeat(levels);
  const isNothing = (params: unknown) => [params ?? null].flat().every((value) => value === null);

  it("reads a client's request as JSON.parse does, or refuses the frame", () => {
    const json = fc.oneof(
      fc.jsonValue(),
      fc.record(
        {
          jsonrpc: fc.constantFrom("2.0", "1.0", 2),
          id: fc.oneof(fc.integer(), fc.string(), fc.constant(null), fc.double()),
          method: fc.oneof(fc.constantFrom("ping", "session.send"), fc.string()),
          params: fc.oneof(fc.dictionary(fc.string(), fc.jsonValue()), fc.jsonValue()),
          result: fc.jsonValue(),
        },
        { requiredKeys: [] },
      ),
    );
    fc.assert(
      fc.property(json, (value) => {
        const text = JSON.stringify(value) ?? "null";
        let message: ReturnType<typeof readClientFrame>;
        try {
          message = read(text);
        } catch (error) {
          expect(error).toBeInstanceOf(ProtocolError);
          return;
        }
        const parsed = JSON.parse(text) as { id?: unknown; method?: unknown; params?: unknown };
        if (message.kind === "request") {
          expect(message).toEqual({
            kind: "request",
            id: parsed.id,
            method: parsed.method,
            params: isNothing(parsed.params) ? {} : parsed.params,
            bytes: Buffer.byteLength(text),
          });
        }
      }),
      { numRuns: 2_000 },
    );
  });

  it("gives a client's response another id without changing its content", () => {
    const text = '{"jsonrpc":"2.0","id":5,"result":{"big":12345678901234567890,"exact":1.0,"ü":"\\u00fc"}}';
    const message = read(text);
    if (message.kind !== "response") throw new Error("not a response");
    const framed = message.withId("abc").toString();
    expect(framed.slice(framed.indexOf("{"))).toBe(text.replace('"id":5', '"id":"abc"'));
  });

  it.each(["null", "[]", "[null]", "[null,null]"])(
    "treats the params %s of a client's request as no parameters",
    (params) => {
      expect(read(`{"jsonrpc":"2.0","id":1,"method":"ping","params":${params}}`)).toMatchObject({
        kind: "request",
        params: {},
      });
    },
  );

  it.each(['[{"message":"x"}]', "[null,5]", "5", '"x"', "[[null]]"])(
    "classifies a client's request with the params %s as unfit",
    (params) => {
      expect(read(`{"jsonrpc":"2.0","id":1,"method":"ping","params":${params}}`)).toMatchObject({
        kind: "unfit",
        id: 1,
        rpcCode: -32602,
      });
    },
  );

  it("classifies a request of more than 127 levels as unfit, and turns such a response into an error", () => {
    const request = (levels: number) =>
      `{"jsonrpc":"2.0","id":"a","method":"ping","params":{"a":${nested(levels - 2)}}}`;
    expect(read(request(127))).toMatchObject({ kind: "request" });
    expect(read(request(128))).toMatchObject({ kind: "unfit", id: "a", rpcCode: -32602 });
    expect(read(request(1_000_000))).toMatchObject({ kind: "unfit", id: "a" });
    const response = (levels: number) => {
      const message = read(`{"jsonrpc":"2.0","id":5,"result":${nested(levels - 1)}}`);
      if (message.kind !== "response") throw new Error("not a response");
      const framed = message.withId("b").toString();
      return JSON.parse(framed.slice(framed.indexOf("{")));
    };
    expect(response(127)).toEqual({ jsonrpc: "2.0", id: "b", result: JSON.parse(nested(126)) });
    expect(response(128)).toEqual({ jsonrpc: "2.0", id: "b", error: { code: -32602, message: expect.any(String) } });
  });

  it.each([
    [
      "elements",
      (values: number) =>
        `{"a":[${Array(values - 2)
          .fill("{}")
          .join()}]}`,
    ],
    ["members", (values: number) => `{"a":{${Array.from({ length: values }, (_, index) => `"${index}":1`).join()}}}`],
    ["parameters", (values: number) => `{${Array.from({ length: values }, (_, index) => `"${index}":1`).join()}}`],
  ])("classifies a client's frame with more than 50,000 %s as unfit, wherever its id is", (_, make) => {
    const few = make(20_000);
    const many = make(50_001);
    const over = { rpcCode: -32602, message: "The message has more than 50000 values. A long text may be one string." };
    expect(read(`{"jsonrpc":"2.0","id":1,"method":"ping","params":${few}}`)).toMatchObject({ kind: "request" });
    expect(read(`{"jsonrpc":"2.0","id":1,"method":"ping","params":${many}}`)).toEqual({
      kind: "unfit",
      id: 1,
      ...over,
    });
    expect(read(`{"jsonrpc":"2.0","method":"ping","params":${many},"id":1}`)).toEqual({
      kind: "unfit",
      id: 1,
      ...over,
    });
    expect(read(`{"params":${many},"method":"ping","id":1,"jsonrpc":"2.0"}`)).toEqual({
      kind: "unfit",
      id: 1,
      ...over,
    });
    expect(read(`{"jsonrpc":"2.0","method":"$/x","params":${many}}`)).toEqual({ kind: "notification", method: "$/x" });
    for (const text of [`{"jsonrpc":"2.0","id":5,"result":${many}}`, `{"jsonrpc":"2.0","result":${many},"id":5}`]) {
      const response = read(text);
      if (response.kind !== "response") throw new Error("not a response");
      const framed = response.withId("b").toString();
      const error = { code: -32602, message: over.message };
      expect(JSON.parse(framed.slice(framed.indexOf("{")))).toEqual({ jsonrpc: "2.0", id: "b", error });
    }
  });

  it("refuses a client's frame with too many values if the frame's id follows more than a megabyte of values", () => {
    const many = `[${Array(400_000).fill("{}").join()}]`;
    expect(() => read(`{"jsonrpc":"2.0","method":"ping","params":{"a":${many}},"id":1}`)).toThrow(
      "The message has more than 50000 values.",
    );
  });

  it("reads a client's string of several megabytes, with any escapes, as one value", () => {
    const texts = ["a", '"', "\\", '\\"', "\n{[,", "é", "🦊"].map((piece) => piece.repeat(300_000));
    for (const text of texts)
      expect(read(JSON.stringify({ jsonrpc: "2.0", id: 1, method: "ping", params: { text } }))).toMatchObject({
        kind: "request",
        params: { text },
      });
    const escaped = "\\ud83e\\udd8a".repeat(300_000);
    expect(read(`{"jsonrpc":"2.0","id":1,"method":"ping","params":{"text":"${escaped}"}}`)).toMatchObject({
      params: { text: "🦊".repeat(300_000) },
    });
    expect(read(`{"jsonrpc":"2.0","id":1,"method":"ping","params":{"text":"${escaped}\\ud83e"}}`)).toMatchObject({
      kind: "unfit",
    });
  });

  it("classifies a client's frame with half of a surrogate pair as unfit, because the runtime would not answer it", () => {
    const request = (text: string) => read(`{"jsonrpc":"2.0","id":"a","method":"ping","params":{"a":[${text}]}}`);
    const whole = ['"\\ud83e\\udd8a \\\\ud83e \\uD7FF 🦊"', '"\\\\\\ud83e\\uDD8A\\ud83e\\udd8a"', '"\\\\\\\\udd8a"'];
    for (const text of whole) expect(request(text), text).toMatchObject({ kind: "request" });
    const halves = ['"cut \\ud83e"', '"\\udd8a"', '{"a":["\\uD83E "]}', '"\\udd8a\\ud83e"', '"\\ud83e\\ud83e\\udd8a"'];
    const apart = [
      '"\\ud83e","\\udd8a"',
      '"\\ud83e \\udd8a"',
      '"\\ud83e\\u0041"',
      '"\\ud83e\\\\udd8a"',
      '"\\\\\\udd8a"',
    ];
    for (const half of [...halves, ...apart])
      expect(request(half), half).toMatchObject({ kind: "unfit", id: "a", rpcCode: -32602 });
    const response = read('{"jsonrpc":"2.0","id":5,"result":"\\ud83e"}');
    if (response.kind !== "response") throw new Error("not a response");
    expect(response.withId("b").toString()).toContain('"error":{"code":-32602');
    expect(() => read('{"jsonrpc":"2.0","id":5,"method":"ping","params":{"\\ud83e"}}')).toThrow(ProtocolError);
  });

  it("reads a client's frame without an id as a notification, no matter what its params contain", () => {
    for (const params of ['{"a":"\\ud83e"}', nested(127)])
      expect(read(`{"jsonrpc":"2.0","method":"$/progress","params":${params}}`)).toEqual({
        kind: "notification",
        method: "$/progress",
      });
  });

  it.each([
    [Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x7d])],
    ["{"],
    ["null"],
    ['"text"'],
    ["[]"],
    ['{"jsonrpc":"2.0"}'],
    ['{"jsonrpc":"2.0","id":1}'],
    ['{"jsonrpc":"2.0","id":1,"method":5}'],
    ['{"jsonrpc":"2.0","id":null,"method":"ping"}'],
    ['{"jsonrpc":"2.0","id":9007199254740993,"method":"ping"}'],
    ['{"jsonrpc":"2.0","id":1,"method":"pi\\nng"}'],
    ['{"jsonrpc":"2.0","id":1,"method":"ping","extra":1}'],
    ['{"jsonrpc":"2.0","id":1,"result":1,"error":{}}'],
    [`{"jsonrpc":"2.0","id":null,"result":${nested(127)}}`],
    [`{"jsonrpc":"2.0","id":"${"x".repeat(300)}","method":"ping"}`],
  ])("refuses the client's frame %j", (text) => {
    expect(() => read(text)).toThrow(ProtocolError);
  });
});

describe("readServerFrame", () => {
  const read = (value: unknown) =>
    readServerFrame(Buffer.from(typeof value === "string" ? value : JSON.stringify(value)));
  const event = { sessionId: "s-1", event: { type: "session.idle", data: {}, sessionId: "other" } };

  it("reads a server's frame no matter in which order its keys are", () => {
    const expected = { kind: "notification", method: "session.event", sessionId: "s-1", eventType: "session.idle" };
    expect(read({ jsonrpc: "2.0", method: "session.event", params: event })).toEqual(expected);
    expect(read({ params: { event: event.event, sessionId: "s-1" }, method: "session.event", jsonrpc: "2.0" })).toEqual(
      expected,
    );
    expect(read(JSON.stringify({ jsonrpc: "2.0", method: "session.event", params: event }, null, 2))).toEqual(expected);
  });

  it("reads the session of a server's session.lifecycle from its params, not from its metadata", () => {
    const params = { type: "session.updated", sessionId: "s-1", metadata: { sessionId: "other" } };
    const eventType = "session.updated";
    const expected = { kind: "notification", method: "session.lifecycle", sessionId: "s-1", eventType };
    expect(read({ jsonrpc: "2.0", method: "session.lifecycle", params })).toEqual(expected);
    const reversed = { metadata: params.metadata, sessionId: "s-1", type: "session.updated" };
    expect(read({ method: "session.lifecycle", params: reversed, jsonrpc: "2.0" })).toEqual(expected);
  });

  it("reads the same from the beginning of a server's frame as from the whole frame, whatever names the frame contains", () => {
    const name = fc.oneof(fc.string({ unit: "binary" }), fc.string({ minLength: 190, maxLength: 410 }));
    fc.assert(
      fc.property(name, name, (sessionId, type) => {
        for (const [method, params] of [
          ["session.event", { sessionId, event: { type } }],
          ["session.lifecycle", { type, sessionId }],
        ]) {
          const message = { jsonrpc: "2.0", method, params };
          // An indented frame does not begin like the runtime's frames, so readServerFrame reads all of it.
          expect(read(message)).toEqual(read(JSON.stringify(message, null, 1)));
        }
      }),
    );
  });

  it("classifies a server's frame as a response, a request or neither", () => {
    expect(read({ jsonrpc: "2.0", id: 5, result: {} })).toMatchObject({ kind: "response", id: 5, failed: false });
    expect(read({ jsonrpc: "2.0", id: "a", error: { code: 1 } })).toMatchObject({
      kind: "response",
      id: "a",
      failed: true,
    });
    expect(read({ jsonrpc: "2.0", id: 1, method: "hooks.invoke", params: { sessionId: "s" } })).toMatchObject({
      kind: "request",
      id: 1,
      sessionId: "s",
    });
    for (const text of ["{}", "[]", '{"id":null,"error":{}}']) expect(read(text)).toBeNull();
  });

  it("refuses a server's frame that is not JSON", () => {
    for (const text of ["", "nonsense", "{".repeat(100), '{"jsonrpc":"2.0","id":x}'])
      expect(() => read(text), text).toThrow(ProtocolError);
  });
});
