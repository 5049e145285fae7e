import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { encodeFrame, FrameDecoder } from "../../src/runtime/client/frames.js";

describe("frames", () => {
  it("frames decode to the encoded messages, however the stream is cut", () => {
    fc.assert(
      fc.property(
        fc.array(fc.jsonValue(), { maxLength: 8 }),
        fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 50 }),
        (messages, cuts) => {
          const stream = Buffer.concat(messages.map(encodeFrame));
          const decoder = new FrameDecoder();
          const seen: unknown[] = [];
          let at = 0;
          for (let index = 0; at < stream.length; index++) {
            const size = cuts[index % cuts.length] ?? 1;
            seen.push(...decoder.push(stream.subarray(at, at + size)));
            at += size;
          }
          expect(seen).toEqual(messages.map((message) => JSON.parse(JSON.stringify(message))));
          expect(decoder.incomplete).toBe(false);
        },
      ),
    );
  });

  it("frames decode when many come in one chunk or one byte at a time, in any script", () => {
    const message = { text: "h\u00e9llo \u{1f600} \u043c\u0438\u0440" };
    expect(new FrameDecoder().push(Buffer.concat([encodeFrame(message), encodeFrame(message)]))).toEqual([
      message,
      message,
    ]);
    const decoder = new FrameDecoder();
    const stream = encodeFrame(message);
    const seen = [...stream].flatMap((byte) => decoder.push(Buffer.from([byte])));
    expect(seen).toEqual([message]);
  });

  it("a frame decoder reports that a frame is incomplete", () => {
    const decoder = new FrameDecoder();
    const stream = encodeFrame({ a: 1 });
    expect(decoder.incomplete).toBe(false);
    decoder.push(stream.subarray(0, 5));
    expect(decoder.incomplete).toBe(true);
    decoder.push(stream.subarray(5, stream.length - 1));
    expect(decoder.incomplete).toBe(true);
    expect(decoder.push(stream.subarray(stream.length - 1))).toEqual([{ a: 1 }]);
    expect(decoder.incomplete).toBe(false);
  });

  it("frames may have other headers, in any case and order", () => {
    const frame = (head: string) => Buffer.from(`${head}\r\n\r\n{}`);
    for (const head of [
      "content-length: 2",
      "CONTENT-LENGTH:2",
      "Content-Type: application/json; charset=utf-8\r\nContent-Length: 2",
      "Content-Length: 2\r\nContent-Type: x",
    ]) {
      expect(new FrameDecoder().push(frame(head)), head).toEqual([{}]);
    }
  });

  it.each([
    "Content-Length: -1\r\n\r\n",
    "Content-Length: \r\n\r\n",
    "Content-Length: 2x\r\n\r\n{}",
    "Content-Length: 1e3\r\n\r\n",
    "Content-Length: 999999999\r\n\r\n",
    "Content-Length: 99999999999999999999\r\n\r\n",
    "X-Content-Length: 2\r\n\r\n{}",
    "HTTP/1.1 200 OK\r\n\r\n",
    "Content-Length: 3\r\n\r\n{x}",
    "\r\n\r\n",
  ])("the malformed frame %j is refused", (stream) => {
    expect(() => new FrameDecoder().push(Buffer.from(stream))).toThrow();
  });

  it("a frame whose header never ends is refused before it fills the memory", () => {
    const decoder = new FrameDecoder();
    expect(() => {
      for (let index = 0; index < 100; index++) decoder.push(Buffer.alloc(1024, "x"));
    }).toThrow(/does not end/);
  });
});
