import { describe, expect, it } from "vitest";
import { isLoopback, readRedisUrl, showRedisUrl } from "../../src/base/values/network.js";

describe("a Redis URL", () => {
  it.each([
    ["redis://127.0.0.1", { host: "127.0.0.1", port: 6379, tls: false, db: 0, fleet: "db0" }],
    ["redis://h:1/", { host: "h", port: 1, tls: false, db: 0, fleet: "db0" }],
    ["rediss://[::1]:7/15", { host: "::1", port: 7, tls: true, db: 15, fleet: "db15" }],
    ["redis://h/2?fleet=blue-1", { host: "h", port: 6379, tls: false, db: 2, fleet: "blue-1" }],
  ])("readRedisUrl accepts the URL %s", (text, parts) => {
    expect(readRedisUrl(text)).toEqual({ username: null, ...parts });
  });

  it("readRedisUrl decodes the user name, and showRedisUrl leaves it out", () => {
    const url = readRedisUrl("redis://us%40er@h:1/3");
    expect(url).toMatchObject({ username: "us@er" });
    expect(url && showRedisUrl(url)).toBe("redis://h:1/3");
    const other = readRedisUrl("rediss://[::1]/3?fleet=blue");
    expect(other && showRedisUrl(other)).toBe("rediss://[::1]:6379/3?fleet=blue");
  });

  it.each([
    "redis://h/00",
    "redis://h/-1",
    "redis://h/1/2",
    "redis://h?db=1",
    "redis://h#x",
    "redis:///0",
    "redis://%@h",
    "redis://:secret@h",
  ])("readRedisUrl refuses the URL %s", (text) => {
    expect(readRedisUrl(text)).toBeNull();
  });

  it.each([
    ["127.0.0.1", true],
    ["127.9.8.7", true],
    ["[::1]", true],
    ["localhost", true],
    ["127.0.0.1.example", false],
    ["localhost.example", false],
    ["10.0.0.1", false],
    ["[::2]", false],
  ])("isLoopback for the host %s returns %s", (host, expected) => {
    const url = readRedisUrl(`redis://${host}/0`);
    expect(url && isLoopback(url)).toBe(expected);
  });
});
