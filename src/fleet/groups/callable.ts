/** A group that is also a function, because `Fleet` once had a method with the group's name: `fleet.servers()`. */
export type Callable<Group, Arguments extends unknown[], Result> = Group & {
  /** @deprecated Use `list`. */
  // biome-ignore lint/style/useShorthandFunctionType: only a signature can be marked as deprecated
  (...args: Arguments): Result;
};

/** @returns a function that has the methods of the group */
export function callable<Group extends object, Arguments extends unknown[], Result>(
  group: Group,
  call: (group: Group, ...args: Arguments) => Result,
): Callable<Group, Arguments, Result> {
  const result = (...args: Arguments) => call(group, ...args);
  for (const [name, method] of Object.entries(Object.getOwnPropertyDescriptors(Object.getPrototypeOf(group)))) {
    if (name !== "constructor") Object.defineProperty(result, name, { ...method, value: method.value.bind(group) });
  }
  return result as Callable<Group, Arguments, Result>;
}
