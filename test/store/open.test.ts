import { expect, it } from "vitest";
import { openStore } from "../../src/store/store.js";

it("openStore opens the file store without creating its folder", () => {
  expect(openStore("file", "/nonexistent/state").kind).toBe("file");
});

it.each(["redis://user@127.0.0.1:1/0", "rediss://redis.example"])(
  "openStore opens the Redis store %j without connecting to it",
  (url) => {
    expect(openStore(url, "/nonexistent/state").kind).toBe("redis");
  },
);

it.each(["redis://user:hunter2@example.com/zero", "rediss:x", "http://x", "files", ""])(
  "openStore refuses the store setting %j without showing a password",
  (url) => {
    const refusal = expect.objectContaining({
      code: "FLEET_CONFIG_INVALID",
      message: expect.stringContaining('"file" or Redis'),
    });
    expect(() => openStore(url, "/nonexistent")).toThrow(refusal);
    expect(() => openStore(url, "/nonexistent")).not.toThrow(/hunter2/);
  },
);
