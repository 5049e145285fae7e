import { expect, it } from "vitest";
import { identityText } from "../../src/sandbox/bwrap.js";

it("identityText prints an inode number above 2^63 without a sign, as stat does", () => {
  const inode = 2n ** 63n + 5n;
  expect(identityText({ dev: 7n, ino: BigInt.asIntN(64, inode) })).toBe(`7 ${inode}`);
});
