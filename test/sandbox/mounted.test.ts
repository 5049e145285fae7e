import { expect, it } from "vitest";
import { identityText } from "../../src/sandbox/mounted.js";

it("an inode above 2^63, as GlusterFS has them, is compared without a sign, as stat prints it", () => {
  const inode = 2n ** 63n + 5n;
  expect(identityText({ dev: 7n, ino: BigInt.asIntN(64, inode) })).toBe(`7 ${inode}`);
});
