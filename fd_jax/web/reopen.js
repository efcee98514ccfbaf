// Hands the content of a PNG file to the page, which reads the settings in it.
const input = element.querySelector("input");
input.addEventListener("change", () => {
  const [file] = input.files;
  if (!file) return;
  const reader = new FileReader();
  reader.onload = () => {
    props.value = { name: file.name, data: reader.result };
    trigger("submit");
    input.value = "";
  };
  reader.readAsDataURL(file);
});
