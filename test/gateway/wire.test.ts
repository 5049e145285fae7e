import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { readClientFrame } from "../../src/gateway/client-message.js";
import { encodeBody, FrameSplitter, ProtocolError } from "../../src/gateway/frames.js";
import { scanObject } from "../../src/gateway/scan.js";
import { readServerFrame } from "../../src/gateway/server-message.js";

const LIMIT = 1_000;
const frame = (text: string) => encodeBody(Buffer.from(text));

describe("the splitter", () => {
  it("finds the same frames however the stream is cut, and keeps their bytes", () => {
    const bodies = fc.array(fc.string({ unit: "binary", maxLength: 100 }), { maxLength: 10 });
    fc.assert(
      fc.property(bodies, fc.infiniteStream(fc.integer({ min: 1, max: 50 })), (texts, sizes) => {
        const stream = Buffer.concat(texts.map(frame));
        const splitter = new FrameSplitter(LIMIT);
        const found: { raw: Buffer; body: Buffer }[] = [];
        for (let at = 0; at < stream.length; ) {
          const size = sizes.next().value ?? 1;
          found.push(...splitter.push(stream.subarray(at, at + size)));
          at += size;
        }
        expect(found.map(({ body }) => body.toString())).toEqual(texts.map((text) => Buffer.from(text).toString()));
        expect(Buffer.concat(found.map(({ raw }) => raw)).equals(stream)).toBe(true);
        expect(splitter.incomplete).toBe(false);
      }),
    );
  });

  it.each([
    ["no length", "Content-Type: x\r\n\r\n{}"],
    ["a negative length", "Content-Length: -1\r\n\r\n"],
    ["a length in hex", "Content-Length: 0x10\r\n\r\n"],
    ["a length with a sign", "Content-Length: +2\r\n\r\n{}"],
    ["a fractional length", "Content-Length: 2.0\r\n\r\n{}"],
    ["two lengths", "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"],
    ["the same length twice", "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}"],
    ["another header", "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}"],
    ["bare line feeds in its header", "Content-Length: 2\nX: y\r\n\r\n{}"],
    ["a folded header", "Content-Length:\r\n 2\r\n\r\n{}"],
    ["blanks before the colon", "Content-Length : 2\r\n\r\n{}"],
    ["an empty header", "\r\n\r\n{}"],
    ["more than is allowed", `Content-Length: ${LIMIT + 1}\r\n\r\n`],
    ["a huge length", "Content-Length: 99999999999999999999\r\n\r\n"],
    ["a header without an end", `Content-Type: ${"x".repeat(2_000)}`],
    ["HTTP", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"],
  ])("refuses %s", (_, text) => {
    expect(() => new FrameSplitter(LIMIT).push(Buffer.from(text))).toThrow(ProtocolError);
  });

  it("refuses a frame that is too long before its bytes come", () => {
    const splitter = new FrameSplitter(LIMIT);
    expect(splitter.push(Buffer.from("Content-Length: 1000\r\n\r\n"))).toEqual([]);
    expect(splitter.push(Buffer.alloc(999, 0x20))).toEqual([]);
    expect(splitter.push(Buffer.alloc(1, 0x20))).toHaveLength(1);
  });
});

describe("the scanner", () => {
  it("finds in every JSON object what a parser finds", () => {
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

  it("counts how deep it goes", () => {
    const nested = (depth: number) => Buffer.from(`{"a":${"[".repeat(depth - 1)}${"]".repeat(depth - 1)}}`);
    expect(scanObject(nested(10), 0, 10)).toHaveLength(1);
    expect(scanObject(nested(11), 0, 10)).toBeNull();
    expect(scanObject(nested(1_000_000), 0, 10)).toBeNull();
  });

  it("ends with every text", () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom(...'{}[]",:\\ 1ae\n') }), (text) => {
        scanObject(Buffer.from(text));
      }),
      { numRuns: 2_000 },
    );
  });
});

describe("a client's frame", () => {
  const read = (text: string | Buffer) => readClientFrame(Buffer.from(text));

  it("is what JSON.parse says it is, or refused", () => {
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
        const parsed = JSON.parse(text) as { id?: unknown; method?: unknown; params?: object };
        if (message.kind === "request") {
          expect(message).toEqual({
            kind: "request",
            id: parsed.id,
            method: parsed.method,
            params: parsed.params ?? {},
          });
        }
      }),
      { numRuns: 2_000 },
    );
  });

  it("is answered under another id without a change of its content", () => {
    const text = '{"jsonrpc":"2.0","id":5,"result":{"big":12345678901234567890,"exact":1.0,"ü":"\\u00fc"}}';
    const message = read(text);
    if (message.kind !== "response") throw new Error("not a response");
    const framed = message.withId("abc").toString();
    expect(framed.slice(framed.indexOf("{"))).toBe(text.replace('"id":5', '"id":"abc"'));
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
    [`{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":${"[".repeat(200)}${"]".repeat(200)}}}`],
    [`{"jsonrpc":"2.0","id":1,"result":${"[".repeat(200)}${"]".repeat(200)}}`],
    [`{"jsonrpc":"2.0","id":"${"x".repeat(300)}","method":"ping"}`],
  ])("%j is refused", (text) => {
    expect(() => read(text)).toThrow(ProtocolError);
  });
});

describe("a server's frame", () => {
  const read = (value: unknown) =>
    readServerFrame(Buffer.from(typeof value === "string" ? value : JSON.stringify(value)));
  const event = { sessionId: "s-1", event: { type: "session.idle", data: {}, sessionId: "other" } };

  it("is read from its beginning, or from wherever its keys are", () => {
    const expected = { kind: "notification", method: "session.event", sessionId: "s-1", eventType: "session.idle" };
    expect(read({ jsonrpc: "2.0", method: "session.event", params: event })).toEqual(expected);
    expect(read({ params: { event: event.event, sessionId: "s-1" }, method: "session.event", jsonrpc: "2.0" })).toEqual(
      expected,
    );
    expect(read(JSON.stringify({ jsonrpc: "2.0", method: "session.event", params: event }, null, 2))).toEqual(expected);
  });

  it("is a response, a request or nothing", () => {
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
    for (const text of ["", "{}", "[]", "nonsense", '{"id":null,"error":{}}', "{".repeat(100)])
      expect(read(text)).toBeNull();
  });
});
