import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { encodeBody, FrameSplitter, ProtocolError } from "../../src/runtime/wire/frames.js";

const LIMIT = 1_000;
const frame = (text: string) => encodeBody(Buffer.from(text));
const bodies = (frames: readonly { body: Buffer }[]) => frames.map(({ body }) => body.toString());

describe("the frame splitter", () => {
  it("FrameSplitter returns the same frames with the same bytes, no matter how the stream is cut", () => {
    const texts = fc.array(fc.string({ unit: "binary", maxLength: 100 }), { maxLength: 10 });
    fc.assert(
      fc.property(texts, fc.infiniteStream(fc.integer({ min: 1, max: 50 })), (sent, sizes) => {
        const stream = Buffer.concat(sent.map(frame));
        const splitter = new FrameSplitter(LIMIT);
        const found: { raw: Buffer; body: Buffer }[] = [];
        for (let at = 0; at < stream.length; ) {
          const size = sizes.next().value ?? 1;
          found.push(...splitter.push(stream.subarray(at, at + size)));
          at += size;
        }
        expect(bodies(found)).toEqual(sent.map((text) => Buffer.from(text).toString()));
        expect(Buffer.concat(found.map(({ raw }) => raw)).equals(stream)).toBe(true);
        expect(splitter.incomplete).toBe(false);
      }),
    );
  });

  it("FrameSplitter reports a frame as incomplete from the frame's first byte until its last", () => {
    const splitter = new FrameSplitter(LIMIT);
    const stream = frame("{}");
    expect(splitter.incomplete).toBe(false);
    splitter.push(stream.subarray(0, 5));
    expect(splitter.incomplete).toBe(true);
    splitter.push(stream.subarray(5, stream.length - 1));
    expect(splitter.incomplete).toBe(true);
    expect(bodies(splitter.push(stream.subarray(stream.length - 1)))).toEqual(["{}"]);
    expect(splitter.incomplete).toBe(false);
  });

  it.each([
    ["lower case", "content-length: 2"],
    ["upper case without a blank", "CONTENT-LENGTH:2"],
    ["a type before the length", "Content-Type: application/json; charset=utf-8\r\nContent-Length: 2"],
    ["a type after the length", "Content-Length: 2\r\nContent-Type: x"],
  ])("FrameSplitter accepts a frame whose header has %s", (_, head) => {
    expect(bodies(new FrameSplitter(LIMIT).push(Buffer.from(`${head}\r\n\r\n{}`)))).toEqual(["{}"]);
  });

  it.each([
    ["no length", "Content-Type: x\r\n\r\n{}"],
    ["an empty length", "Content-Length: \r\n\r\n"],
    ["a negative length", "Content-Length: -1\r\n\r\n"],
    ["a length in hex", "Content-Length: 0x10\r\n\r\n"],
    ["a length with a sign", "Content-Length: +2\r\n\r\n{}"],
    ["a length with an exponent", "Content-Length: 1e3\r\n\r\n"],
    ["a length with a unit", "Content-Length: 2x\r\n\r\n{}"],
    ["a fractional length", "Content-Length: 2.0\r\n\r\n{}"],
    ["two lengths", "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"],
    ["the same length twice", "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}"],
    ["another header", "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}"],
    ["another header with a length", "X-Content-Length: 2\r\n\r\n{}"],
    ["bare line feeds in its header", "Content-Length: 2\nX: y\r\n\r\n{}"],
    ["a folded header", "Content-Length:\r\n 2\r\n\r\n{}"],
    ["blanks before the colon", "Content-Length : 2\r\n\r\n{}"],
    ["an empty header", "\r\n\r\n{}"],
    ["a length above the limit", `Content-Length: ${LIMIT + 1}\r\n\r\n`],
    ["a huge length", "Content-Length: 99999999999999999999\r\n\r\n"],
    ["a header without an end", `Content-Type: ${"x".repeat(2_000)}`],
    ["an HTTP request line", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"],
  ])("FrameSplitter refuses a frame with %s", (_, text) => {
    expect(() => new FrameSplitter(LIMIT).push(Buffer.from(text))).toThrow(ProtocolError);
  });

  it("FrameSplitter refuses a header that arrives in many chunks and never ends, before it fills the memory", () => {
    const splitter = new FrameSplitter(LIMIT);
    expect(() => {
      for (let index = 0; index < 100; index++) splitter.push(Buffer.alloc(100, "x"));
    }).toThrow("does not end");
  });
});
